"""INT4 folders as other tools write them: read, converted, verified."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qconvert.checkpoint import load_safetensors, save_safetensors
from qconvert.formats import awq, gptq, open_weights
from qconvert.schemes import QuantizedWeight, get_scheme
from tests.int4.folders import Tensors, run


def foreign(source: Path, folder: Path, block: dict[str, object], pack: Callable[[QuantizedWeight], Tensors]) -> Path:
    """The source with its experts in a tool's own packing, F16 scales, its config, and its copy of that config."""
    shutil.copytree(source, folder)
    tensors: Tensors = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors |= load_safetensors(shard)
        shard.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    for name in [name for name in tensors if ".layers.0.mlp.experts." in name and name.startswith("model.")]:
        numbers = get_scheme("int4-g64", scales="f16", asymmetric=not block.get("sym")).quantize(tensors.pop(name))
        tensors |= {name.removesuffix("weight") + part: data for part, data in pack(numbers).items()}
    save_safetensors(folder / "model.safetensors", tensors)
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": block}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "quantize_config.json").write_text(json.dumps(block))
    return folder


def gptq_v2(numbers: QuantizedWeight) -> Tensors:
    return gptq.pack(numbers.codes, numbers.scales, numbers.zeros, 64, shift=0)


def gptq_v1_without_g_idx(numbers: QuantizedWeight) -> Tensors:
    parts = gptq.pack(numbers.codes, numbers.scales, numbers.zeros, 64)
    return {part: data for part, data in parts.items() if part != "g_idx"}


def awq_gemm(numbers: QuantizedWeight) -> Tensors:
    return awq.pack(numbers.codes, numbers.scales, numbers.zeros)


SKIPPED = {f"-:.*{part}.*": {} for part in ("layers.1", "attn", "shared", "mlp.gate$", "mtp")}
NOT_QUANTIZED = {
    f".*{part}.*": {"bits": 16} for part in ("layers.1", "attn", "shared", r"mlp\.gate$", "mtp", "lm_head")
}
FOREIGN = {
    "auto-round-awq": ({"quant_method": "auto-round", "bits": 4, "group_size": 64, "sym": True, "data_type": "int",
                        "packing_format": "auto_round:auto_awq", "extra_config": NOT_QUANTIZED}, awq_gemm),
    "gptq-v2": ({"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": False, "desc_act": False,
                 "checkpoint_format": "gptq_v2", "dynamic": SKIPPED}, gptq_v2),
    "gptq-v1": ({"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "dynamic": SKIPPED},
                gptq_v1_without_g_idx),
    "awq": ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM", "zero_point": True,
             "modules_to_not_convert": ["layers.1", "attn", "shared", "mlp.gate", "mtp", "lm_head"]}, awq_gemm),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_folders_of_other_tools(case: str, source: Path, tmp_path: Path) -> None:
    block, pack = FOREIGN[case]
    folder = foreign(source, tmp_path / "foreign", block, pack)
    done = run("verify", folder, "--against", source)
    assert done.exit_code == 0, done.output
    before = open_weights(folder)
    assert before.quantized and {scheme.name for scheme in before.quantized.values()} == {"int4-g64"}
    done = run("convert", folder, tmp_path / "ours", "--format", "compressed-tensors")
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "ours" / "quantize_config.json").exists()
    after = open_weights(tmp_path / "ours")
    assert set(after.names) == set(before.names) and after.quantized.keys() == before.quantized.keys()
    for name in before.quantized:
        left, right = before.load(name), after.load(name)
        assert isinstance(left, QuantizedWeight) and isinstance(right, QuantizedWeight)
        assert torch.equal(left.codes, right.codes) and torch.equal(left.scales, right.scales)
        assert left.scales.dtype == torch.float16
        assert torch.equal(left.dequantize(), right.dequantize())
    for against in (folder, source):
        assert run("verify", tmp_path / "ours", "--against", against).exit_code == 0

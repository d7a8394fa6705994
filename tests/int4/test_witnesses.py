"""INT4 and FP8 folders of ours, read by others: compressed-tensors' decompressors, its config and its matching of
names, its AutoAWQ converter, and transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
from compressed_tensors.utils.match import match_name
from torch import Tensor

from qconvert.checkpoint import load_safetensors, read_config
from qconvert.formats import open_weights
from qconvert.quantization import quantize
from qconvert.schemes import QuantizedWeight
from tests.int4.folders import CONFIG


@pytest.fixture(scope="module")
def symmetric(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("witnesses") / "symmetric"
    quantize(source, folder, scheme="int4-g32")
    return folder


def opened(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return load_safetensors(folder / "model.safetensors"), read_config(folder)[1]["quantization_config"]


@pytest.mark.parametrize(
    "settings",
    [
        {"scheme": "int4-g32"},
        {"scheme": "int4-g128", "method": "rtn"},
        {"scheme": "int4-g64", "asymmetric": True},
        {"scheme": "fp8-block128", "file_format": "compressed-tensors"},
    ],
    ids=["symmetric", "rtn", "asymmetric", "fp8"],
)
def test_decompressor_of_compressed_tensors_agrees(settings: dict[str, Any], source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "out", **settings)
    tensors, block = opened(tmp_path / "out")
    config = QuantizationConfig.model_validate(block)
    group: QuantizationScheme = config.config_groups["group_0"]
    decompressor = BaseCompressor.get_value_from_registry(config.format)
    weights = open_weights(tmp_path / "out")
    for name in weights.quantized:
        ours = weights.load(name)
        assert isinstance(ours, QuantizedWeight)
        module = name.removesuffix("weight")
        parts = {key.removeprefix(module): value for key, value in tensors.items() if key.startswith(module)}
        theirs = decompressor.decompress(parts, group)["weight"]
        assert torch.equal(ours.dequantize(theirs.dtype), theirs), name
        assert not any(match_name(module.rstrip("."), entry) for entry in config.ignore)
    for name in set(weights.names) - weights.quantized.keys():
        if len(weights.shape(name)) == 2 and name != "model.embed_tokens.weight":
            assert any(match_name(name.removesuffix(".weight"), entry) for entry in config.ignore), name


def test_awq_converter_of_compressed_tensors_agrees(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "awq", scheme="int4-g32", asymmetric=True, file_format="awq")
    quantize(source, tmp_path / "ct", scheme="int4-g32", asymmetric=True)
    tensors, block = opened(tmp_path / "awq")
    theirs = AutoAWQConverter.from_autoawq_config(block).process(tensors)
    ours, _ = opened(tmp_path / "ct")
    assert theirs.keys() == ours.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_transformers_loads_the_folder(symmetric: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        symmetric, dtype=torch.bfloat16, output_loading_info=True, device_map="cpu"
    )
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    assert not info.get("mismatched_keys")
    weights = open_weights(symmetric)
    fused = model.model.layers[1].mlp.experts
    for expert in range(CONFIG["num_experts"]):
        prefix = f"model.layers.1.mlp.experts.{expert}"
        gate, up, down = (weights.load(f"{prefix}.{part}_proj.weight") for part in ("gate", "up", "down"))
        assert isinstance(gate, QuantizedWeight) and isinstance(up, QuantizedWeight)
        assert isinstance(down, QuantizedWeight)
        assert torch.equal(fused.gate_up_proj[expert], torch.cat((gate.dequantize(), up.dequantize())))
        assert torch.equal(fused.down_proj[expert], down.dequantize())

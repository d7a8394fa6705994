"""Makes the fixtures of AutoRound; run by hand, never by the tests, which must not depend on it.

    python -m venv autoround && autoround/bin/pip install torch==2.13.0 auto-round==0.16.1
    PYTHONPATH=. autoround/bin/python -m tests.int4.made_by_auto_round TOKENIZER_FOLDER

Without iterations it only rounds, and needs no data, no GPU, but some tokenizer. Its own format takes another way
(`model_free`, which quantizes the prediction head, too) than those of other tools.
"""

import sys
import tempfile
from pathlib import Path

import torch
from auto_round import AutoRound
from auto_round.export.export_to_awq.utils import WQLinear_GEMM
from auto_round_extension.torch import qlinear_torch, qlinear_torch_zp
from torch import Tensor

from tests.int4.foreign import save, source_tensors, write_source

GROUP = 32
CASES = {  # format, symmetric, module that decodes
    "auto-round": ("auto_round", True, "zp"),
    "auto-round-asym": ("auto_round", False, "plain"),
    "auto-round-as-gptq": ("auto_gptq", True, "zp"),
    "auto-round-as-awq": ("auto_awq", False, "awq"),
    "auto-round-awq": ("auto_round:auto_awq", True, "awq"),
}


def decode_with(kind: str, parts: dict[str, Tensor]) -> Tensor:
    """Its own linear layer, applied to the identity."""
    columns = parts["qweight"].shape[0] * (1 if kind == "awq" else 8)
    rows = parts["scales"].shape[1]
    if kind == "awq":
        layer = WQLinear_GEMM(4, GROUP, columns, rows, False, "cpu")
    else:
        module = qlinear_torch_zp if kind == "zp" else qlinear_torch
        layer = module.QuantLinear(4, GROUP, columns, rows, False)
        layer.post_init()
    for name in ("qweight", "qzeros", "scales"):  # with g_idx, here always k // group, the layer takes square ones only
        setattr(layer, name, parts[name])
    with torch.no_grad():
        return layer(torch.eye(columns, dtype=parts["scales"].dtype)).T


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        source = write_source(work / "source")
        for file in Path(sys.argv[1]).glob("tokenizer*"):
            (source / file.name).write_bytes(file.read_bytes())
        for case, (form, symmetric, kind) in CASES.items():
            target = work / case
            tool = AutoRound(
                str(source), scheme="W4A16", iters=0, group_size=GROUP, sym=symmetric, disable_opt_rtn=True,
                device_map="cpu", low_cpu_mem_usage=True,
            )  # fmt: skip
            tool.quantize_and_save(str(target), format=form)
            folder = next(target.rglob("config.json")).parent
            save(
                case, folder, source_tensors(), f"iters=0, format={form}, sym={symmetric}, group_size={GROUP}",
                "auto-round", "transformers", "torch", decode=lambda parts, kind=kind: decode_with(kind, parts),
            )  # fmt: skip


if __name__ == "__main__":
    main()

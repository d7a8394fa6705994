"""Logical weights of plain and of FP8 folders, and FP8 folders that must not be read."""

from pathlib import Path
from typing import Any

import pytest
import torch

from qconvert.checkpoint import write_checkpoint
from qconvert.errors import UserError
from qconvert.formats import format_names, format_of, get_format, open_weights
from qconvert.schemes import QuantizedWeight, get_scheme

BLOCK = {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3", "activation_scheme": "dynamic"}
WEIGHT = torch.randn(130, 200, generator=torch.Generator().manual_seed(0)).bfloat16()


def folder(path: Path, leave_out: str = "", scale_type: torch.dtype = torch.bfloat16) -> Path:
    numbers = get_scheme("fp8-block128").quantize(WEIGHT)
    tensors = {"norm": torch.ones(3), "w": numbers.codes, "w_scale_inv": numbers.scales.to(scale_type)}
    tensors.pop(leave_out, None)
    return write_checkpoint(path, {"quantization_config": BLOCK}, tensors)


@pytest.mark.parametrize("scale_type", [torch.bfloat16, torch.float16, torch.float32])
def test_fp8_folder(tmp_path: Path, scale_type: torch.dtype) -> None:
    weights = open_weights(folder(tmp_path, scale_type=scale_type))
    assert set(weights.names) == {"norm", "w"}
    assert "w" in weights
    assert "w_scale_inv" not in weights
    assert weights.shape("w") == (130, 200)
    got = weights.load("w")
    assert isinstance(got, QuantizedWeight)
    assert got.scales.dtype == scale_type
    want = get_scheme("fp8-block128").quantize(WEIGHT)
    relative = (got.dequantize(torch.float32) - want.dequantize(torch.float32)).norm() / WEIGHT.float().norm()
    assert float(relative) <= (2.0**-11 if scale_type == torch.float16 else 0.0)  # F16 rounds scales by half of 2^-10
    assert torch.equal(torch.as_tensor(weights.load("norm")), torch.ones(3))


def test_plain_folder(tmp_path: Path) -> None:
    weights = open_weights(write_checkpoint(tmp_path, {}, {"w": WEIGHT}))
    assert weights.names == ("w",)
    assert weights.quantized == {}
    assert torch.equal(torch.as_tensor(weights.load("w")), WEIGHT)


@pytest.mark.parametrize(
    ("leave_out", "message"),
    [("w_scale_inv", "w is FP8 but has no usable scale"), ("w", "w_scale_inv has no FP8 weight")],
)
def test_codes_and_scales_need_each_other(tmp_path: Path, leave_out: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_weights(folder(tmp_path, leave_out))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"quant_method": "gguf"}, "unknown quant_method 'gguf'"),
        ("fp8", "unknown quant_method 'fp8'"),
        (BLOCK | {"weight_block_size": [64, 64]}, "weight_block_size"),
        ({"quant_method": "fp8"}, "weight_block_size"),
        (BLOCK | {"fmt": "e5m2"}, "fmt"),
        (BLOCK | {"scale_fmt": "ue8m0"}, "scale_fmt"),
    ],
)
def test_unknown_kinds_are_refused(block: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        format_of({"quantization_config": block})


def test_names() -> None:
    assert all(get_format(name).name == name for name in format_names())
    assert format_of({}) is None
    with pytest.raises(UserError, match="unknown format 'zip'"):
        get_format("zip")

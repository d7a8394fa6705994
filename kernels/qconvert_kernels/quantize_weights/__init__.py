"""Weights [N, K] to the numbers of `qconvert quantize`, on a GPU: the same bytes as on a CPU.

    fp8_block128(weight, scales)                            e4m3 codes, one scale per block of 128 x 128
    int4(weight, group, scales, method, asymmetric)         int8 codes -8..7, one scale per group of a row

Codes, scales and zero points equal `naive` bit for bit; a block or group with a NaN or a number beyond `naive.limit`
has the scale NaN and unspecified codes. `offer` is how `qconvert quantize` finds these (entry point
`qconvert.quantizers`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qconvert_kernels.errors import BadInput
from qconvert_kernels.launch import available, check, load_kernels, on
from qconvert_kernels.quantize_weights import naive
from qconvert_kernels.quantize_weights.naive import BLOCK, SCALE_TYPES, Quantized

FLOATS = (torch.bfloat16, torch.float32, torch.float16)
GROUPS = (32, 64, 128)
METHODS = ("rtn", "mse")
ROUNDINGS = {"bf16": 0, "f32": 1, "pow2": 2}  # as the kernels spell them
WARPS = 8
PROGRAM = 4096  # numbers of a program of `int4`
MOST_GROUPS = 2**31 - PROGRAM  # counted in 32 bits

__all__ = ["Quantized", "fp8_block128", "int4", "offer"]


def offer(
    scheme: str, settings: Mapping[str, Any], device: torch.device
) -> tuple[str, Callable[[Tensor], Quantized]] | None:
    """What quantizes weights on this device for a scheme of `qconvert` with these settings, and its name; None if
    nothing here does."""
    if available(device) is not None:
        return None
    scales, name = settings["scale_type"], f"triton {load_kernels('numerics').triton.__version__}"
    if scheme == "fp8-block128":
        return name, partial(fp8_block128, scales=scales)
    if scheme.startswith("int4-g") and settings["method"] in METHODS and scales in ("bf16", "f32"):
        group, method = settings["group"], settings["method"]
        return name, partial(int4, group=group, scales=scales, method=method, asymmetric=settings["asymmetric"])
    return None


def fp8_block128(weight: Tensor, scales: str = "bf16") -> Quantized:
    """weight [N, K] of any float; scales "bf16", "f32" or "pow2" (powers of two in bf16)."""
    weight = _checked(weight)
    _check_choice("scales", scales, tuple(ROUNDINGS))
    (rows, columns), device = weight.shape, weight.device
    blocks = -(-rows // BLOCK), -(-columns // BLOCK)
    codes = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=device)
    out = Quantized(codes, torch.empty(blocks, dtype=SCALE_TYPES[scales], device=device))
    if 0 in weight.shape:
        return out
    kernel = load_kernels("quantize_weights.kernels").fp8_block128
    with on(device):
        kernel[blocks[1], blocks[0]](
            weight, out.codes, out.scales, rows, columns, weight.stride(0), blocks[1],
            **fp8_constants(scales), num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return out


def int4(
    weight: Tensor, group: int, scales: str = "bf16", method: str = "mse", *, asymmetric: bool = False
) -> Quantized:
    """weight [N, K] of any float in groups of 32, 64 or 128; scales "bf16" or "f32"; method "rtn" or "mse"."""
    weight = _checked(weight)
    _check_choice("group", group, GROUPS)
    _check_choice("scales", scales, ("bf16", "f32"))
    _check_choice("method", method, METHODS)
    (rows, columns), device = weight.shape, weight.device
    groups = -(-columns // group)
    codes = torch.empty(rows, columns, dtype=torch.int8, device=device)
    stored = torch.empty(rows, groups, dtype=SCALE_TYPES[scales], device=device)
    zeros = torch.empty(rows, groups, dtype=torch.int8, device=device) if asymmetric else None
    if 0 in weight.shape:
        return Quantized(codes, stored, zeros)
    if rows * groups > MOST_GROUPS:
        raise BadInput(f"weight: expected at most {MOST_GROUPS} groups, found {rows * groups}")
    kernel = load_kernels("quantize_weights.kernels").int4
    with on(device):
        kernel[(-(-rows * groups * group // PROGRAM),)](
            weight, codes, stored, codes if zeros is None else zeros, rows * groups, groups, columns, weight.stride(0),
            **int4_constants(weight.dtype, group, scales, method, asymmetric), enable_fp_fusion=False,
        )  # fmt: skip
    return Quantized(codes, stored, zeros)


def fp8_constants(scales: str) -> dict[str, Any]:
    """Of the kernel `fp8_block128`."""
    return {"LIMIT": _bits(naive.LARGEST_WEIGHT), "SCALES": ROUNDINGS[scales]}


def int4_constants(dtype: torch.dtype, group: int, scales: str, method: str, asymmetric: bool) -> dict[str, Any]:
    """Of the kernel `int4`."""
    grid, width = (naive.GRID_ASYMMETRIC, 15.0) if asymmetric else (naive.GRID, 8.0)
    return {
        "GROUP": group,
        "LIMIT": _bits(naive.limit(asymmetric)),
        "FACTORS": tuple(width / (part * grid) for part in naive.SHRINK),
        "SHORTEST": naive.SHORTEST,
        "LONGEST": naive.LONGEST,
        "GRID": grid,
        "EPS": torch.finfo(SCALE_TYPES[scales]).eps,
        "SEARCH": method == "mse",
        "ASYMMETRIC": asymmetric,
        "OWN_BF16": dtype == torch.bfloat16,
        "SCALES": ROUNDINGS[scales],
    }


def _checked(weight: Tensor) -> Tensor:
    """bf16 and fp32 are what the kernels read; others widen exactly."""
    check("weight", weight, (-1, -1), FLOATS)
    return weight.float() if weight.dtype == torch.float16 else weight


def _bits(number: float) -> int:
    """Of a positive fp32 number."""
    return int(torch.tensor(number).view(torch.int32))


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise BadInput(f"{name}: expected one of {', '.join(map(str, choices))}, found {value}")

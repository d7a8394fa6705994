"""Weights [N, K] to the numbers of `qconvert quantize`, on a GPU: the same bytes as on a CPU.

    fp8_block128(weight, scales)                            e4m3 codes, one scale per block of 128 x 128
    int4(weight, group, scales, method, asymmetric)         int8 codes -8..7, one scale per group of a row
    squared_errors(weight, quantized, block)                sums of squares of each row, in fp64

Codes, scales, zero points and sums equal `naive` bit for bit; a block or group with a NaN or a number beyond
`naive.limit` has the scale NaN and unspecified codes. `offer` is how `qconvert quantize` finds these (entry point
`qconvert.quantizers`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qconvert_kernels.errors import BadInput
from qconvert_kernels.launch import available, check, check_devices, load_kernels, on
from qconvert_kernels.quantize_weights import naive
from qconvert_kernels.quantize_weights.naive import BLOCK, SCALE_TYPES, Quantized

FLOATS = (torch.bfloat16, torch.float32, torch.float16)
GROUPS = (32, 64, 128)
METHODS = ("rtn", "mse")
ROUNDINGS = {"bf16": 0, "f32": 1, "pow2": 2}  # as the kernels spell them
WARPS = 8
PROGRAM = 4096  # numbers of a program of `int4`
ERROR_ROWS = 16  # rows of a program of `squared_errors`
MOST_GROUPS = 2**31 - PROGRAM  # counted in 32 bits

__all__ = ["Offered", "Quantized", "fp8_block128", "int4", "offer", "squared_errors"]


class Offered(NamedTuple):
    """What `qconvert` asks of a device, for one scheme."""

    name: str
    quantize: Callable[[Tensor], Quantized]
    squared_errors: Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]  # weight, codes, scales, zeros


def offer(scheme: str, settings: Mapping[str, Any], device: torch.device) -> Offered | None:
    """The kernels of this device for a scheme of `qconvert` with these settings; None if there are none."""
    if available(device) is not None:
        return None
    scales, name = settings["scale_type"], f"triton {load_kernels('numerics').triton.__version__}"
    if scheme == "fp8-block128":
        quantize, block = partial(fp8_block128, scales=scales), (BLOCK, BLOCK)
    elif scheme.startswith("int4-g") and settings["method"] in METHODS and scales in ("bf16", "f32"):
        group, method = settings["group"], settings["method"]
        quantize = partial(int4, group=group, scales=scales, method=method, asymmetric=settings["asymmetric"])
        block = 1, group
    else:
        return None
    return Offered(name, quantize, lambda weight, *parts: squared_errors(weight, Quantized(*parts), block))


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


def squared_errors(weight: Tensor, quantized: Quantized, block: tuple[int, int]) -> Tensor:
    """fp64 [2, N]: each row's sums of squares of errors and of weights. A scale covers `block` numbers."""
    weight = _checked(weight)
    rows, columns = weight.shape
    codes, scales, zeros = quantized
    check("codes", codes, (rows, columns), (torch.float8_e4m3fn, torch.int8))
    check("scales", scales, (-(-rows // block[0]), -(-columns // block[1])), FLOATS[:2])
    check_devices(weight=weight, codes=codes, scales=scales, zeros=zeros)
    sums = torch.empty(2, rows, dtype=torch.float64, device=weight.device)
    if rows == 0:
        return sums
    codes, scales = codes.contiguous(), scales.contiguous()
    kernel = load_kernels("quantize_weights.kernels").squared_errors
    with on(weight.device):
        kernel[(-(-rows // ERROR_ROWS),)](
            weight, codes, scales, codes if zeros is None else zeros.contiguous(), sums,
            rows, columns, weight.stride(0), scales.shape[1],
            **error_constants(block, zeros is not None), num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return sums


def error_constants(block: tuple[int, int], asymmetric: bool) -> dict[str, Any]:
    """Of the kernel `squared_errors`."""
    return {"SCALE_ROWS": block[0], "GROUP": block[1], "ASYMMETRIC": asymmetric, "ROWS": ERROR_ROWS}


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

"""Activations [M, K] to e4m3 codes with one fp32 scale per token and 128 neighbours.

    quantize(x)                         x as it is
    rms_norm_quantize(x, weight, eps)   behind zero-centred RMSNorm; its BF16 result is needed too (router, small
                                        projections that stay BF16) and is returned with the codes
    silu_mul_quantize(gate, up)         behind silu(gate) * up, between the two halves of an MLP

Codes and scales equal `naive.quantize` bit for bit on the values that are quantized. Those values themselves may differ
from the naive norm or silu by one rounding: sums of squares and exponentials are not specified to the last bit.
A NaN becomes a NaN code; it does not touch the scale. Scales lie group by group in memory ([K/128, M], transposed), so
that the product kernels read those of neighbouring tokens side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qconvert_kernels.errors import BadInput
from qconvert_kernels.launch import check, check_devices, load_kernels, on
from qconvert_kernels.quantize_activations.naive import GROUP, QuantizedActivations

FLOATS = (torch.bfloat16, torch.float32)
ROWS = 16  # tokens a program takes; 16 x 128 numbers are 16 a thread
MOST_GROUPS = 128  # a whole token lies in registers behind the norm: K <= 16384

__all__ = ["QuantizedActivations", "quantize", "rms_norm_quantize", "silu_mul_quantize"]


def quantize(x: Tensor) -> QuantizedActivations:
    """x [M, K] bf16 or fp32."""
    check("x", x, (-1, -1), FLOATS)
    out = _empty(x)
    _launch(x, x, x, out, silu_mul=False, keep=False)
    return out


def silu_mul_quantize(gate: Tensor, up: Tensor) -> QuantizedActivations:
    """Codes of silu(gate) * up; both [M, K], also as the two halves of one [M, 2K]."""
    return _silu_mul(gate, up, None)


def silu_mul_keep_quantize(gate: Tensor, up: Tensor) -> tuple[Tensor, QuantizedActivations]:
    """The product [M, K] itself as well."""
    y = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    return y, _silu_mul(gate, up, y)


def rms_norm_quantize(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, QuantizedActivations]:
    """x [M, K], weight [K] -> the norm [M, K] in x's dtype, and its codes."""
    check("x", x, (-1, -1), FLOATS)
    check("weight", weight, (x.shape[1],), FLOATS)
    check_devices(x=x, weight=weight)
    groups = _groups(x.shape[1])
    if groups > MOST_GROUPS:
        raise BadInput(f"x: expected at most {MOST_GROUPS * GROUP} columns, found {x.shape[1]}")
    out = _empty(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if 0 in x.shape:
        return y, out
    kernel = load_kernels("quantize_activations.kernels").rms_norm_quantize
    with on(x.device):
        kernel[(x.shape[0],)](
            x, weight, y, out.codes, out.scales, x.shape[1], x.stride(0), *out.scales.stride(), eps,
            GROUPS=1 << (groups - 1).bit_length(),
        )  # fmt: skip
    return y, out


def _groups(width: int) -> int:
    return -(-width // GROUP)


def _empty(x: Tensor) -> QuantizedActivations:
    codes = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    return QuantizedActivations(codes, torch.empty(_groups(x.shape[1]), x.shape[0], device=x.device).T)


def _silu_mul(gate: Tensor, up: Tensor, y: Tensor | None) -> QuantizedActivations:
    check("gate", gate, (-1, -1), FLOATS)
    check("up", up, tuple(gate.shape), (gate.dtype,))
    check_devices(gate=gate, up=up)
    out = _empty(gate)
    _launch(gate, up, gate if y is None else y, out, silu_mul=True, keep=y is not None)
    return out


def _launch(x: Tensor, up: Tensor, y: Tensor, out: QuantizedActivations, *, silu_mul: bool, keep: bool) -> None:
    grid = (-(-x.shape[0] // ROWS), _groups(x.shape[1]))
    if 0 in x.shape:
        return
    kernel = load_kernels("quantize_activations.kernels").quantize
    with on(x.device):
        kernel[grid](
            x, up, y, out.codes, out.scales, *x.shape, x.stride(0), up.stride(0), *out.scales.stride(),
            SILU_MUL=silu_mul, KEEP=keep, ROWS=ROWS,
        )  # fmt: skip

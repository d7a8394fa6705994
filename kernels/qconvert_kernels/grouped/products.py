"""The routed experts of one layer: a launch for each line, whatever the routes.

    layout    count, sort       pairs by expert, in blocks                     kernels_rows
    x         (W8A8) codes and scales of x, once a token                       quantize_activations
    h         gate_up           silu(gate x) * (up x) for every pair           kernels_fp8, kernels_int4
    z         down              by pair, BF16
    y         combine           weighted sum over each token's slots           kernels_rows

What comes out is specified by `naive.moe`. Nothing is read back from the GPU, so that a CUDA graph can hold all of it;
memory is that of the most blocks the routes can need. The order of every sum depends on the tiling and K alone.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from qconvert_kernels import quantize_activations
from qconvert_kernels.errors import BadInput
from qconvert_kernels.grouped import tilings
from qconvert_kernels.grouped.naive import Activations
from qconvert_kernels.grouped.routing import Layout, most_blocks
from qconvert_kernels.grouped.stacked import Fp8Experts, blocks
from qconvert_kernels.grouped.tilings import GroupedTiling
from qconvert_kernels.launch import check, load_kernels
from qconvert_kernels.quantize_activations import QuantizedActivations

ROUTE_TYPES = (torch.int32, torch.int64)
CHUNK = 1024  # routes a program reads at a time
COMBINE_BLOCK = 512

Rows: TypeAlias = "Tensor | QuantizedActivations"  # BF16, or codes and scales


def layout(experts: Tensor, num_experts: int, tile: int) -> Layout:
    """`routing.layout` in two launches; experts int [T, k], contiguous."""
    check("experts", experts, (-1, -1), ROUTE_TYPES)
    kernels, total, device = load_kernels("grouped.kernels_rows"), experts.numel(), experts.device
    made = most_blocks(total, num_experts, tile)
    counts = torch.empty(num_experts, dtype=torch.int32, device=device)
    out = Layout(*(torch.empty(size, dtype=torch.int32, device=device) for size in (made * tile, made, 1)))
    routes = experts.contiguous()
    kernels.count[(num_experts,)](routes, counts, total, CHUNK=CHUNK)
    kernels.sort[(num_experts + 1,)](
        routes, counts, *out, total, made,
        E=num_experts, TILE=tile, CHUNK=CHUNK, ALL=1 << (num_experts - 1).bit_length(),
    )  # fmt: skip
    return out


def gate_up(x: Rows, rows: Layout, slots: int, stacked: Fp8Experts, tiling: GroupedTiling) -> Rows:
    """x of all tokens [T, H] -> h of all rows [B * tile, I], as x is: BF16, or codes and scales."""
    hidden, inner, device = stacked.hidden, stacked.intermediate, stacked.gate_up.device
    values, scales = (x, stacked.gate_up_scales[0, 0]) if isinstance(x, Tensor) else x
    h = torch.empty(len(rows.pairs), inner, dtype=values.dtype, device=device)
    h_scales = torch.empty(len(rows.pairs), blocks(inner), device=device)
    product = tiling.gate_up
    load_kernels("grouped.kernels_fp8").gate_up[(len(rows.experts) * -(-inner // product.block_weights),)](
        values, scales, stacked.gate_up, stacked.gate_up_scales, rows.pairs, rows.experts, h, h_scales,
        len(values) * slots, slots, *scales.stride(),
        H=hidden, INNER=inner, A8=not isinstance(x, Tensor),
        TILE=tiling.tile, BLOCK_N=product.block_weights,
        num_warps=product.num_warps, num_stages=product.num_stages,
    )  # fmt: skip
    return h if isinstance(x, Tensor) else QuantizedActivations(h, h_scales)


def down(h: Rows, rows: Layout, pairs: int, stacked: Fp8Experts, tiling: GroupedTiling) -> Tensor:
    """h of all rows -> z of all pairs, BF16 [P, H]"""
    hidden, inner, device = stacked.hidden, stacked.intermediate, stacked.down.device
    values, scales = (h, stacked.down_scales) if isinstance(h, Tensor) else h
    z = torch.empty(pairs, hidden, dtype=torch.bfloat16, device=device)
    product = tiling.down
    load_kernels("grouped.kernels_fp8").down[(len(rows.experts) * -(-hidden // product.block_weights),)](
        values, scales, stacked.down, stacked.down_scales, rows.pairs, rows.experts, z, pairs,
        H=hidden, INNER=inner, A8=not isinstance(h, Tensor),
        TILE=tiling.tile, BLOCK_N=product.block_weights,
        num_warps=product.num_warps, num_stages=product.num_stages,
    )  # fmt: skip
    return z


def combine(z: Tensor, experts: Tensor, weights: Tensor, num_experts: int, dtype: torch.dtype) -> Tensor:
    """z [T k, H] by pair, experts and weights [T, k] -> y [T, H]"""
    (tokens, slots), hidden = experts.shape, z.shape[1]
    y = torch.empty(tokens, hidden, dtype=dtype, device=z.device)
    load_kernels("grouped.kernels_rows").combine[(tokens, -(-hidden // COMBINE_BLOCK))](
        z, experts.contiguous(), weights.contiguous(), y, num_experts, H=hidden, SLOTS=slots, BLOCK_N=COMBINE_BLOCK
    )
    return y


def moe(
    x: Tensor,
    experts: Tensor,
    weights: Tensor,
    stacked: Fp8Experts,
    activations: Activations = "none",
    tiling: GroupedTiling | None = None,
) -> Tensor:
    """x bf16 [T, H], experts int [T, k], weights fp32 or bf16 [T, k] -> y bf16 [T, H]."""
    check("x", x, (-1, stacked.hidden), (torch.bfloat16,))
    check("experts", experts, (len(x), -1), ROUTE_TYPES)
    check("weights", weights, tuple(experts.shape), (torch.float32, torch.bfloat16))
    kind = "fp8_w8a16" if activations == "none" else "fp8_w8a8"
    tiling = tiling or tilings.default(kind, experts.numel(), stacked.num_experts)
    if wrong := tilings.problems(kind, tiling):
        raise BadInput(f"{tiling}: {'; '.join(wrong)}")
    if not experts.numel():
        return torch.zeros_like(x)
    rows = layout(experts, stacked.num_experts, tiling.tile)
    entering = x.contiguous() if activations == "none" else quantize_activations.quantize(x)
    h = gate_up(entering, rows, experts.shape[1], stacked, tiling)
    z = down(h, rows, experts.numel(), stacked, tiling)
    return combine(z, experts, weights, stacked.num_experts, x.dtype)

"""The routed experts of one layer: a launch for each line, whatever the routes.

    layout    count, sort       pairs by expert, in blocks                     kernels_rows, or routing for many
    x         (W8A8) codes and scales of x, once a token                       quantize_activations
    h         gate_up           silu(gate x) * (up x) for every row            kernels_fp8, kernels_int4
    z         down              by pair, BF16                                  the same
    y         combine           weighted sum over each token's slots           kernels_rows

What comes out is specified by `naive.moe`. Nothing is read back from the GPU, so that a CUDA graph can hold all of it;
memory is that of the most blocks the routes can need. The order of every sum depends on the tiling and K alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qconvert_kernels import quantize_activations
from qconvert_kernels.errors import BadInput
from qconvert_kernels.grouped import routing, tilings
from qconvert_kernels.grouped.routing import Layout, most_blocks
from qconvert_kernels.grouped.stacked import Activations, Experts
from qconvert_kernels.grouped.tilings import GroupedTiling
from qconvert_kernels.launch import check, check_devices, device_name, load_kernels, on

ROUTE_TYPES = (torch.int32, torch.int64)
CHUNK = 1024  # routes a program reads at a time
FEW_ROUTES = 16 * CHUNK  # each program reads all of them, step by step: beyond, sorting is quicker; not measured
COMBINE_BLOCK = 512


def layout(experts: Tensor, num_experts: int, tile: int) -> Layout:
    """`routing.layout`, in two launches where routes are few; experts int [T, k]."""
    check("experts", experts, (-1, -1), ROUTE_TYPES)
    if experts.numel() > FEW_ROUTES:
        return routing.layout(experts, num_experts, tile)
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
    stacked: Experts,
    activations: Activations = "none",
    tiling: GroupedTiling | None = None,
) -> Tensor:
    """x bf16 [T, H], experts int [T, k], weights fp32 or bf16 [T, k] -> y bf16 [T, H]."""
    check("x", x, (-1, stacked.hidden), (torch.bfloat16,))
    check("experts", experts, (len(x), -1), ROUTE_TYPES)
    check("weights", weights, tuple(experts.shape), (torch.float32, torch.bfloat16))
    check_devices(x=x, experts=experts, weights=weights, stacked=stacked.some)
    kind = stacked.kind(activations)
    tiling = tiling or tilings.choose(kind, device_name(x.device), experts.numel(), stacked.num_experts)
    if wrong := tilings.problems(kind, tiling):
        raise BadInput(f"{tiling}: {'; '.join(wrong)}")
    if not experts.numel():
        return torch.zeros_like(x)
    with on(x.device):
        rows = layout(experts, stacked.num_experts, tiling.tile)
        entering = x.contiguous() if activations == "none" else quantize_activations.quantize(x)
        h = stacked.gate_up(entering, rows, experts.shape[1], tiling)
        z = stacked.down(h, rows, experts.numel(), tiling)
        return combine(z, experts, weights, stacked.num_experts, x.dtype)

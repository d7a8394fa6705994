"""The specification of the routed experts, one after the other, in plain torch.

    h     = silu(gate x) * (up x)      in fp32; then rounded once, to BF16 or to e4m3 groups (activations)
    z     = down h                     rounded once, to BF16
    y[t]  = sum over slots of weights[t, slot] * z     in fp32, slot after slot; rounded once to the dtype of x

activations "fp8-group128" quantises x and h by row and group of 128; "none" leaves them in BF16. Weights are never
rounded after they are decoded. A token with a route outside 0..E-1 becomes NaN: on a GPU nothing can be raised where
that is noticed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qconvert_kernels.grouped.stacked import Activations, Experts
from qconvert_kernels.quantize_activations import naive as activation


def round_rows(x: Tensor, activations: Activations) -> Tensor:
    """x [M, K] as it enters a product."""
    if activations == "fp8-group128":
        return activation.dequantize(activation.quantize(x), x.dtype)
    return x.bfloat16().to(x.dtype)


def gated(x: Tensor, gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate x) * (up x), x [M, H] -> [M, I]; not rounded"""
    return F.silu(x @ gate.T) * (x @ up.T)


def combine(z: Tensor, experts: Tensor, weights: Tensor, num_experts: int) -> Tensor:
    """z [T k, H] by pair, experts and weights [T, k] -> fp32 [T, H]"""
    tokens, slots = experts.shape
    known = (experts >= 0) & (experts < num_experts)
    weights = torch.where(known, weights.float(), torch.nan)
    rows = z.float().view(tokens, slots, -1)
    y = torch.zeros_like(rows[:, 0])
    for slot in range(slots):
        y = y + weights[:, slot, None] * rows[:, slot]
    return y


def moe(x: Tensor, experts: Tensor, weights: Tensor, stacked: Experts, activations: Activations = "none") -> Tensor:
    """x [T, H], experts int and weights [T, k] -> y [T, H]"""
    wide, flat = round_rows(x.float(), activations), experts.flatten()
    z = torch.zeros(len(flat), x.shape[1], dtype=torch.bfloat16, device=x.device)
    for expert in range(stacked.num_experts):
        pairs = (flat == expert).nonzero()[:, 0]
        if len(pairs):
            gate, up, down = stacked.expert(expert)
            h = round_rows(gated(wide[pairs // experts.shape[1]], gate, up), activations)
            z[pairs] = (h @ down.T).bfloat16()
    return combine(z, experts, weights, stacked.num_experts).to(x.dtype)

"""Routes, weights and bounds for the grouped products.

How far h = silu(g) * u may be from the fp64 truth, given that g and u are each within e_g and e_u (bounds.py): the
slope of silu is at most 1.1, so 1.1 e_g (|u| + e_u) + |silu(g)| e_u. Computing it costs (|g| + 16) roundings of 2^-24:
e^-g is as wrong as its rounded argument makes it. Below -88, where fp32 knows no e^-g, h is 0 instead of less than
2^-120 |u|.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qconvert_kernels.grouped.routing import Layout
from qconvert_kernels.grouped.stacked import Experts
from qconvert_kernels.quantize_activations.naive import QuantizedActivations, dequantize
from tests.kernels.bounds import FP32

# name -> T, k, E, H, I, how routes fall
CASES = {
    "one token": (1, 3, 5, 256, 128, "random"),
    "ragged": (7, 2, 3, 200, 72, "random"),
    "empty experts": (7, 2, 9, 128, 136, "last two"),
    "all to one": (33, 1, 3, 136, 128, "one"),
    "many tokens": (129, 1, 2, 128, 128, "random"),
}


def routes(tokens: int, slots: int, experts: int, how: str) -> tuple[Tensor, Tensor]:
    """experts int64 [T, k], different ones for a token, and weights fp32 [T, k]"""
    generator = torch.Generator().manual_seed(0)
    scores = torch.rand(tokens, experts, generator=generator)
    if how == "last two":
        scores[:, -2:] += 1
    elif how == "one":
        scores[:, 1] += 1
    weights, chosen = scores.topk(slots, -1)
    return chosen, weights / weights.sum(-1, keepdim=True)


def activations(*shape: int, positive: bool = False, seed: int = 1) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (x.abs() if positive else x).bfloat16()


def product_error(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """x weight^T in fp64, and how far an fp32 sum of blocks may be from it; see bounds.py"""
    return x @ weight.T, (127 + 3 + -(-x.shape[1] // 128)) * FP32 * 1.01 * (x.abs() @ weight.abs().T)


def gated_error(x: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """h in fp64 and how far it may be off before it is rounded"""
    (g, g_error), (u, u_error) = product_error(x, gate), product_error(x, up)
    h = F.silu(g) * u
    error = 1.1 * g_error * (u.abs() + u_error) + F.silu(g).abs() * u_error
    return h, error + (g.abs() + 16) * FP32 * (h.abs() + error) + 2.0**-120 * (u.abs() + u_error)


def real_rows(rows: Layout, pairs: int) -> list[tuple[int, Tensor, Tensor]]:
    """(expert, its rows in the layout, their pairs) of every block in use"""
    found = []
    for block, expert in enumerate(rows.experts.tolist()):
        row = torch.arange(block * rows.tile, (block + 1) * rows.tile)
        row = row[rows.pairs[row] < pairs]
        if expert >= 0:
            found.append((expert, row, rows.pairs[row].long()))
    return found


def assert_within(got: Tensor, want: Tensor, allowed: Tensor) -> None:
    wrong = ~((got.double() - want).abs() <= allowed)  # NaN is wrong too
    assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()} off, first at {wrong.nonzero()[0].tolist()}"


def values(rows: Tensor | QuantizedActivations) -> Tensor:
    return rows.double() if isinstance(rows, Tensor) else dequantize(rows, torch.float64)


def assert_gated(h: Tensor | QuantizedActivations, x: Tensor, rows: Layout, slots: int, stacked: Experts) -> None:
    """h of every real row: what the product may be off, and then half a step of the format it was rounded to"""
    got = values(h)
    for expert, row, pair in real_rows(rows, len(x) * slots):
        want, error = gated_error(x[pair // slots], *stacked.expert(expert, torch.float64)[:2])
        if isinstance(h, Tensor):
            half_step = 2.0**-8 * (want.abs() + error) + 2.0**-134
        else:
            scales = h.scales[row].double().repeat_interleave(128, 1)[:, : want.shape[1]]
            half_step = torch.maximum(2.0**-4 * (want.abs() + error), 2.0**-10 * scales) * (1 + 2.0**-20)
            # The scale is the largest of the group / 448, unless the group is all zeros.
            for group in range(h.scales.shape[1]):
                part = slice(128 * group, 128 * group + 128)
                largest = want[:, part].abs().amax(1)
                assert_within(h.scales[row, group] * 448, largest, error[:, part].amax(1) + 2.0**-22 * largest)
        assert_within(got[row], want, error + half_step)

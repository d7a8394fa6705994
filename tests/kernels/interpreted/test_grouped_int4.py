"""The grouped INT4 products, line by line against fp64 on the dequantized factors."""

import dataclasses

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need triton")

from qconvert_kernels.errors import BadInput
from qconvert_kernels.grouped import naive, products, routing
from qconvert_kernels.grouped.int4 import Int4Experts
from qconvert_kernels.grouped.tilings import GroupedTiling, Product
from qconvert_kernels.int4_gemm.packing import PackedInt4, repack
from tests.kernels.bounds import assert_close
from tests.kernels.grouped_cases import (
    CASES,
    activations,
    assert_gated,
    real_rows,
    routes,
    values,
)

FEW = GroupedTiling(16, Product(64, 4, 4), Product(128, 4, 4))
MANY = GroupedTiling(64, Product(128, 8, 3), Product(64, 8, 4))


def packed(rows: int, columns: int, group: int, asymmetric: bool, generator: torch.Generator) -> PackedInt4:
    """All sixteen codes, scales of both signs over three orders, zero points over their whole range"""
    integers = lambda *shape: torch.randint(-8, 8, shape, generator=generator, dtype=torch.int8)  # noqa: E731
    groups = -(-columns // group)
    scales = torch.randn(rows, groups, generator=generator)
    scales = scales * 10.0 ** torch.randint(-3, 0, scales.shape, generator=generator) / columns**0.5
    return repack(
        integers(rows, columns), scales.bfloat16(), integers(rows, groups) if asymmetric else None, group=group
    )


def experts_of(number: int, hidden: int, inner: int, group: int, asymmetric: bool = False) -> Int4Experts:
    generator = torch.Generator().manual_seed(0)
    shapes = [(inner, hidden), (inner, hidden), (hidden, inner)]
    return Int4Experts.stack(
        *([packed(*shape, group, asymmetric, generator) for _ in range(number)] for shape in shapes)
    )


@pytest.mark.parametrize(
    "case, group, asymmetric",
    [
        ("one token", 128, False),
        ("ragged", 32, True),
        ("ragged", 64, False),
        ("ragged", 128, True),
        ("empty experts", 32, False),
        ("all to one", 64, True),
        ("many tokens", 128, False),
    ],
)
def test_each_line_against_fp64(case: str, group: int, asymmetric: bool) -> None:
    tokens, slots, number, hidden, inner, how = CASES[case]
    chosen, weights = routes(tokens, slots, number, how)
    x, stacked = activations(tokens, hidden), experts_of(number, hidden, inner, group, asymmetric)
    tiling = MANY if tokens > 100 else FEW
    rows = routing.layout(chosen, number, tiling.tile)
    h = stacked.gate_up(x, rows, slots, tiling)
    assert_gated(h, x.double(), rows, slots, stacked)
    z = stacked.down(h, rows, chosen.numel(), tiling)
    for expert, row, pair in real_rows(rows, chosen.numel()):
        assert_close(z[pair], values(h)[row], stacked.expert(expert, torch.float64)[2])
    if case == "ragged":
        y = naive.combine(z, chosen, weights, number).bfloat16()
        assert torch.equal(y, products.moe(x, chosen, weights, stacked, tiling=tiling))


def test_positive_factors() -> None:
    """Nothing cancels: sums are as long as they get."""
    chosen, _ = routes(5, 2, 3, "random")
    x, stacked = activations(5, 384, positive=True), experts_of(3, 384, 128, 128)
    words = torch.full_like(stacked.words_gate_up, -17)  # every code 7 or 6
    stacked = dataclasses.replace(stacked, words_gate_up=words, scales_gate_up=stacked.scales_gate_up.abs())
    assert bool((stacked.expert(0)[0] > 0).all())
    rows = routing.layout(chosen, 3, 16)
    assert_gated(stacked.gate_up(x, rows, 2, FEW), x.double(), rows, 2, stacked)


@pytest.mark.parametrize("fault", ["nibbles", "experts", "groups", "zero points"])
def test_faults_leave_the_bound(fault: str) -> None:
    chosen, _ = routes(7, 2, 3, "random")
    x, stacked = activations(7, 256), experts_of(3, 256, 128, 64, asymmetric=True)
    rows, wrong = routing.layout(chosen, 3, 16), stacked
    if fault == "nibbles":
        words = stacked.words_gate_up.clone()
        words[..., 7, 5] ^= 0x0F00
        wrong = dataclasses.replace(stacked, words_gate_up=words)
    elif fault == "experts":
        wrong = dataclasses.replace(stacked, words_gate_up=stacked.words_gate_up.roll(1, 0))
    elif fault == "groups":
        wrong = dataclasses.replace(stacked, scales_gate_up=stacked.scales_gate_up.roll(1, 2))
    elif fault == "zero points":
        assert isinstance(stacked.offsets_gate_up, Tensor)
        wrong = dataclasses.replace(stacked, offsets_gate_up=stacked.offsets_gate_up + 1)
    h = wrong.gate_up(x, rows, 2, FEW)
    with pytest.raises(AssertionError, match="off, first at"):
        assert_gated(h, x.double(), rows, 2, stacked)


def test_what_does_not_fit_is_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    gate, other = packed(64, 128, 64, False, generator), packed(64, 128, 64, True, generator)
    down = packed(128, 64, 64, False, generator)
    with pytest.raises(BadInput, match="up of expert 1: expected rows, columns, group, symmetric"):
        Int4Experts.stack([gate, gate], [gate, other], [down, down])
    stacked = Int4Experts.stack([gate], [gate], [down])
    x, chosen, weights = activations(2, 128), torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 1)
    with pytest.raises(BadInput, match="INT4 weights are multiplied with BF16"):
        products.moe(x, chosen, weights, stacked, "fp8-group128")

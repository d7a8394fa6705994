"""The grouped FP8 products, line by line against fp64 on the dequantized factors, and whole against the reference."""

import dataclasses

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need triton")

from qconvert_kernels.errors import BadInput
from qconvert_kernels.grouped import naive, products, routing
from qconvert_kernels.grouped.fp8 import Fp8Experts
from qconvert_kernels.grouped.stacked import Activations
from qconvert_kernels.grouped.tilings import GroupedTiling, Product
from qconvert_kernels.quantize_activations.naive import QuantizedActivations, quantize
from tests.kernels.bounds import assert_close
from tests.kernels.grouped_cases import CASES, activations, assert_gated, real_rows, routes, values

LANES: list[Activations] = ["fp8-group128", "none"]
FEW = GroupedTiling(16, Product(128, 4, 3), Product(64, 4, 4))
MANY = GroupedTiling(64, Product(128, 8, 3), Product(128, 8, 4))


def codes(*shape: int, positive: bool, seed: int) -> tuple[Tensor, Tensor]:
    """Codes [E, N, K] over the whole range of e4m3, scales over three orders"""
    generator = torch.Generator().manual_seed(seed)
    values = (torch.randn(shape, generator=generator) * 100).clamp(-448, 448)
    scales = torch.randn(shape[0], -(-shape[1] // 128), -(-shape[2] // 128), generator=generator)
    scales = scales * 10.0 ** torch.randint(-3, 0, scales.shape, generator=generator) / shape[2] ** 0.5
    if positive:
        values, scales = values.abs(), scales.abs()
    return values.to(torch.float8_e4m3fn), scales.bfloat16()


def experts_of(number: int, hidden: int, inner: int, *, positive: bool = False) -> Fp8Experts:
    (gate, up), down = (
        (codes(number, inner, hidden, positive=positive, seed=s) for s in (1, 2)),
        codes(number, hidden, inner, positive=positive, seed=3),
    )
    return Fp8Experts.stack(*(list(zip(*part, strict=True)) for part in (gate, up, down)))


def entering(x: Tensor, lane: Activations) -> Tensor | QuantizedActivations:
    return x if lane == "none" else quantize(x)


@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("case", CASES)
def test_each_line_against_fp64(case: str, lane: Activations) -> None:
    tokens, slots, number, hidden, inner, how = CASES[case]
    chosen, weights = routes(tokens, slots, number, how)
    x, stacked = activations(tokens, hidden), experts_of(number, hidden, inner)
    tiling = MANY if tokens > 100 else FEW
    rows = products.layout(chosen, number, tiling.tile)
    for got, want in zip(rows, routing.naive_layout(chosen, number, tiling.tile), strict=True):
        assert torch.equal(got, want)
    h = stacked.gate_up(entering(x, lane), rows, slots, tiling)
    assert_gated(h, values(entering(x, lane)), rows, slots, stacked)
    z = stacked.down(h, rows, chosen.numel(), tiling)
    for expert, row, pair in real_rows(rows, chosen.numel()):
        assert_close(z[pair], values(h)[row], stacked.expert(expert, torch.float64)[2])
    y = products.combine(z, chosen, weights, number, torch.bfloat16)
    assert torch.equal(y, naive.combine(z, chosen, weights, number).bfloat16())
    if case == "ragged":
        assert torch.equal(y, products.moe(x, chosen, weights, stacked, lane, tiling))


@pytest.mark.parametrize("lane", LANES)
def test_positive_factors(lane: Activations) -> None:
    """Nothing cancels: sums are as long as they get."""
    chosen, _ = routes(5, 2, 3, "random")
    x, stacked = activations(5, 384, positive=True), experts_of(3, 384, 128, positive=True)
    rows = products.layout(chosen, 3, 16)
    h = stacked.gate_up(entering(x, lane), rows, 2, FEW)
    assert_gated(h, values(entering(x, lane)), rows, 2, stacked)


@pytest.mark.parametrize("lane", LANES)
def test_small_integers_come_out_exactly(lane: Activations) -> None:
    """Codes -8..8, scales powers of two: every sum is exact, so z is its rounding bit for bit."""
    generator = torch.Generator().manual_seed(0)
    integers = lambda *shape: torch.randint(-8, 9, shape, generator=generator).float()  # noqa: E731
    stacked = experts_of(3, 136, 200)
    stacked = dataclasses.replace(
        stacked, codes_down=integers(3, 136, 200).to(torch.float8_e4m3fn), scales_down=torch.full((3, 2, 2), 0.25)
    )
    chosen, _ = routes(9, 2, 3, "random")
    rows = routing.layout(chosen, 3, 16)
    h = integers(len(rows.pairs), 200)
    exact = QuantizedActivations(h.to(torch.float8_e4m3fn), torch.full((len(h), 2), 2.0))
    z = stacked.down(h.bfloat16() if lane == "none" else exact, rows, 18, FEW)
    for expert, row, pair in real_rows(rows, 18):
        want = h[row] @ stacked.expert(expert)[2].T * (1 if lane == "none" else 2)
        assert torch.equal(z[pair], want.bfloat16())


@pytest.mark.parametrize("fault", ["gate and up", "experts", "scales", "one code", "tokens"])
def test_faults_leave_the_bound(fault: str) -> None:
    lane: Activations = "none" if fault in ("scales", "tokens") else "fp8-group128"
    chosen, _ = routes(7, 2, 3, "random")
    x, stacked = activations(7, 256), experts_of(3, 256, 128)
    rows = routing.layout(chosen, 3, 16)
    wrong, inputs = stacked, x
    if fault == "gate and up":
        wrong = dataclasses.replace(stacked, scales_gate_up=stacked.scales_gate_up.flip(1).contiguous())
    elif fault == "experts":
        wrong = dataclasses.replace(stacked, codes_gate_up=stacked.codes_gate_up.roll(1, 0))
    elif fault == "scales":
        wrong = dataclasses.replace(stacked, scales_gate_up=stacked.scales_gate_up.roll(1, 3))
    elif fault == "one code":
        damaged = stacked.codes_gate_up.view(torch.uint8).clone()
        damaged[chosen[0, 0], 5, 200] ^= 0x80
        wrong = dataclasses.replace(stacked, codes_gate_up=damaged.view(torch.float8_e4m3fn))
    elif fault == "tokens":
        inputs = x.roll(1, 0)
    h = wrong.gate_up(entering(inputs, lane), rows, 2, FEW)
    with pytest.raises(AssertionError, match="off, first at"):
        assert_gated(h, values(entering(x, lane)), rows, 2, stacked)


def test_a_route_to_no_expert_is_nan_and_disturbs_nobody() -> None:
    chosen, weights = routes(6, 2, 3, "random")
    x, stacked = activations(6, 128), experts_of(3, 128, 128)
    spoilt = chosen.clone()
    spoilt[1, 1], spoilt[3, 0], spoilt[4, 0] = -1, 3, 2**31 - 1
    rest = torch.tensor([0, 2, 5])
    for moe in (products.moe, naive.moe):
        got = moe(x, spoilt, weights, stacked)
        assert got.isnan().all(1).tolist() == [False, True, False, True, True, False]
        assert torch.equal(got[rest], moe(x, chosen, weights, stacked)[rest])


def test_many_routes_are_sorted_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, _ = routes(40, 2, 7, "random")
    monkeypatch.setattr(products, "FEW_ROUTES", 80)
    few = products.layout(chosen, 7, 16)
    monkeypatch.setattr(products, "FEW_ROUTES", 79)
    monkeypatch.setattr(products, "load_kernels", None)
    for got, want in zip(products.layout(chosen, 7, 16), few, strict=True):
        assert torch.equal(got, want)


def test_no_tokens() -> None:
    stacked = experts_of(3, 128, 128)
    chosen, weights = routes(0, 2, 3, "random")
    assert products.moe(activations(0, 128), chosen, weights, stacked).shape == (0, 128)


def test_what_does_not_fit_is_refused() -> None:
    chosen, weights = routes(6, 2, 3, "random")
    x, stacked = activations(6, 128), experts_of(3, 128, 128)
    with pytest.raises(BadInput, match=r"x: expected \[-1, 128\] bfloat16, found \[6, 128\] float32"):
        products.moe(x.float(), chosen, weights, stacked)
    with pytest.raises(BadInput, match="experts: expected"):
        products.moe(x, chosen[:5], weights, stacked)
    with pytest.raises(BadInput, match="block_weights 64, expected 128"):
        tiling = GroupedTiling(16, Product(64, 4, 3), Product(64, 4, 4))
        products.moe(x, chosen, weights, stacked, "fp8-group128", tiling)
    with pytest.raises(BadInput, match="scales_down: expected"):
        dataclasses.replace(stacked, scales_down=stacked.scales_down[:, :, :0])
    with pytest.raises(BadInput, match="contiguous"):
        dataclasses.replace(stacked, codes_down=stacked.codes_down.mT)

"""Both ways of multiplying BF16 factors beside the exact sum, and how one is chosen."""

import gc

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qconvert.errors import UserError
from qconvert.schemes import get_scheme
from qconvert_evals.identity import machine
from qconvert_reference import linear, products
from qconvert_reference.linear import Linear, Numerics, Shared, make_linear, nearest_codes
from qconvert_reference.products import KEPT_BYTES, WideCopies


@pytest.fixture(autouse=True)
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_choices", {})
    monkeypatch.delenv(products.VARIABLE, raising=False)


def within_bound(y: Tensor, x: Tensor, weight: Tensor) -> None:
    """K fp32 additions in any order, each wrong by 2^-24 of what is added up at most, then one BF16 rounding."""
    exact, size = x.double() @ weight.double().T, x.double().abs() @ weight.double().abs().T
    summed = size * (x.shape[-1] + 1) * 2.0**-24
    assert y.dtype == torch.bfloat16
    assert ((y.double() - exact).abs() <= summed + (exact.abs() + summed) * 2.0**-8).all()


WAYS = {
    "bf16": Numerics(products="bf16"),
    "fp32, kept": Numerics(products="fp32"),
    "auto": Numerics(products="auto"),
    "noise": Numerics(accumulation="split"),
}


@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**32), st.integers(-20, 20))
@settings(max_examples=25, deadline=None)
def test_every_way_is_the_same_sum(rows: int, width: int, outputs: int, seed: int, exponent: int) -> None:
    random = torch.Generator().manual_seed(seed)
    x = (torch.randn(rows, width, generator=random) * 2.0**exponent).bfloat16()
    weight = torch.randn(outputs, width, generator=random).bfloat16()
    for numerics in WAYS.values():
        within_bound(make_linear(weight, numerics)(x), x, weight)


def test_pieces_are_the_same_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "PIECE", 3 * 64)  # three outputs at a time, of eight
    x, weight = torch.randn(2, 5, 64).bfloat16(), torch.randn(8, 64).bfloat16()
    for numerics in (Numerics(products="fp32"), Numerics(accumulation="split")):
        monkeypatch.setattr(linear, "WIDE", WideCopies(0))
        layer = make_linear(weight, numerics)
        within_bound(layer(x), x, weight)
        assert layer._wide is None


def test_the_noise_lane_adds_both_halves_apart_whatever_the_plain_lane_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """2^24 in one half, 1 + 1 + 1 in the other: halves apart give 2^24 + 4, for 2^24 + 3 is half-way; one by one each 1
    is lost. Asked of fp32, since BF16 has neither."""
    weight = torch.tensor([[2.0**24, 0.0, 0.0, 1.0, 1.0, 1.0]])
    assert float(make_linear(weight, Numerics(torch.float32, accumulation="split"))(torch.ones(1, 6))) == 2.0**24 + 4
    seen: list[int] = []
    plain = F.linear

    def spy(x: Tensor, weight: Tensor) -> Tensor:
        seen.append(weight.shape[1])
        return plain(x, weight)

    monkeypatch.setattr(F, "linear", spy)
    for way in products.CHOICES:
        seen.clear()
        numerics = Numerics(accumulation="split", products=way)  # type: ignore[arg-type]
        make_linear(torch.randn(4, 7).bfloat16(), numerics)(torch.randn(2, 7).bfloat16())
        assert seen == [3, 4], way


@pytest.mark.parametrize("ratio, way", [(0.5, "bf16"), (1.0, "bf16"), (1.29, "bf16"), (1.31, "fp32"), (7.0, "fp32")])
def test_fp32_must_be_clearly_faster(ratio: float, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, bool]] = []

    def measure(rows: int, kept: bool) -> dict[str, float]:
        asked.append((rows, kept))
        return {"bf16": ratio, "fp32": 1.0}

    monkeypatch.setattr(products, "measure", measure)
    assert [products.choose("auto", rows, True) for rows in (1, 2, 16, 3)] == [way] * 4
    assert asked == [(1, True), (8, True)]  # once a class
    assert products.chosen() == {f"{rows} rows, weight kept in fp32": way for rows in ("1", "2-16")}
    assert products.choose("auto", 10**6, False) == way and "129+ rows, weight not kept in fp32" in products.chosen()
    assert machine()["products"] == products.chosen() and machine()["processor"]


def test_a_measurement_takes_milliseconds() -> None:
    seconds = products.measure(1, True)
    assert set(seconds) == {"bf16", "fp32"} and all(0 < one < 1 for one in seconds.values())


def test_the_user_decides_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "measure", lambda rows, kept: pytest.fail("nothing is to be timed"))
    for way in ("bf16", "fp32"):
        products.forget()
        monkeypatch.setenv(products.VARIABLE, way)
        assert products.choose("auto", 5, True) == way
    products.forget()
    monkeypatch.setenv(products.VARIABLE, "fp8")
    with pytest.raises(UserError, match=products.VARIABLE):
        products.choose("auto", 5, True)


def test_fixed_numerics_ask_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calibration runs on them: its bytes must not hang on a measurement of speed."""
    monkeypatch.setattr(products, "measure", lambda rows, kept: pytest.fail("nothing is to be timed"))
    x, weight = torch.randn(3, 64).bfloat16(), torch.randn(8, 64).bfloat16()
    assert torch.equal(make_linear(weight, Numerics())(x), F.linear(x, weight))


def test_kept_copies_are_bounded_and_given_back() -> None:
    copies, weight = WideCopies(1000), torch.zeros(10, 10)
    owners = [Linear(weight, Numerics()) for _ in range(3)]
    assert [copies.ask(owner, weight) for owner in owners] == [True, True, False] and copies.held == 800
    del owners
    gc.collect()
    assert copies.held == 0 and KEPT_BYTES <= 1 << 30


def test_nothing_is_kept_where_memory_is_short() -> None:
    quantized = get_scheme("fp8-block128").quantize(torch.randn(128, 128))
    layer = make_linear(quantized, Numerics(products="fp32", keep_dequantized=False))
    x = torch.randn(2, 128).bfloat16()
    within_bound(layer(x), x, quantized.dequantize(torch.bfloat16))
    assert layer._wide is None


def test_linears_that_share_an_input_round_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    rounded = linear.round_activations
    monkeypatch.setattr(linear, "round_activations", lambda x, group: calls.append(group) or rounded(x, group))
    numerics = Numerics(activations="fp8-group128")
    layers = [make_linear(get_scheme("fp8-block128").quantize(torch.randn(64, 256)), numerics) for _ in range(2)]
    x = torch.randn(3, 256).bfloat16()
    apart = [layer(x) for layer in layers]
    calls.clear()
    shared = Shared(x)
    assert all(torch.equal(layer(shared), y) for layer, y in zip(layers, apart, strict=True)) and calls == [128]


def test_rounding_by_addition_is_the_cast() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    codes = codes[codes.isfinite()].sort().values
    middles = (codes[1:] + codes[:-1]) / 2
    up, down = torch.full_like(middles, 1e9), torch.full_like(middles, -1e9)
    random = torch.randn(7, 4096) * torch.tensor([1e-4, 1e-3, 1e-2, 0.1, 1.0, 30.0, 150.0])[:, None]
    x = torch.cat([codes, middles, middles.nextafter(up), middles.nextafter(down), random.clamp(-448, 448).flatten()])
    x = torch.cat([x, torch.tensor([1e-40, -1e-45, 0.0, -0.0])])
    assert torch.equal(nearest_codes(x), x.to(torch.float8_e4m3fn).float())
    assert nearest_codes(torch.tensor([float("nan")])).isnan().all()

"""The fused loops against the plain code, bit for bit: every kind of number, shape, rule and scale; and what happens
where they cannot be used."""

import itertools
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numba
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from qconvert.checkpoint import hash_file
from qconvert.quantization import quantize
from qconvert.schemes import QuantizedWeight, UnusableWeight, fused, get_scheme
from qconvert.schemes.fp8_block128 import Fp8Block128
from qconvert.schemes.fused import jit
from qconvert.schemes.int4 import Int4
from tests.tiny import write_tiny_checkpoint

GROUPS = (32, 64, 128)
INT4 = [Int4(*kind) for kind in itertools.product(GROUPS, ("bf16", "f32"), ("rtn", "mse", "imatrix"), (False, True))]
FP8 = [Fp8Block128(scales) for scales in ("bf16", "f32", "pow2")]
EVERY_BF16 = torch.arange(-0x8000, 0x8000, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
USABLE = EVERY_BF16[EVERY_BF16.float().abs() <= 2.0**127]  # NaN compares false

Scheme = Int4 | Fp8Block128


@pytest.fixture(autouse=True)
def demanded(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Loops for weights of any size, or an error."""
    monkeypatch.setattr(fused, "mode", "fused")
    fused._checked.cache_clear()
    yield
    fused._checked.cache_clear()


def largest(scheme: Scheme) -> float:
    return scheme.largest if isinstance(scheme, Int4) else 2.0**127


def mixed(rows: int, columns: int, seed: int, spread: float, exponent: int) -> Tensor:
    """BF16 numbers of many magnitudes, with ties, zeros of both signs, subnormals and one-sided rows among them."""
    generator = torch.Generator().manual_seed(seed)
    normal, wide = torch.randn(2, rows, columns, generator=generator)
    kind = torch.randint(0, 12, (rows, columns), generator=generator)
    row_kind = torch.randint(0, 8, (rows, 1), generator=generator)
    weight = normal * torch.exp2(spread * wide)
    weight = torch.where(row_kind == 0, (weight * 8).round() / 2, weight)
    weight = torch.where(row_kind == 1, weight.abs() + 3, weight)
    weight = torch.where(row_kind == 2, -weight.abs(), weight)
    weight = (weight.clamp(-200, 200) * 2.0**exponent).clamp(-(2.0**127), 2.0**127)
    weight = torch.where(kind == 0, -0.0, weight)
    weight = torch.where(kind == 1, 2.0**-133 * wide.sign(), weight)
    weight = torch.where(row_kind == 3, 0.0, weight)
    return weight.bfloat16()


def importance_for(scheme: Scheme, columns: int) -> tuple[Tensor, ...]:
    if not scheme.weighted:
        return ()
    importance = torch.exp2(3 * torch.randn(columns, generator=torch.Generator().manual_seed(columns)))
    importance[::5] = 0
    importance[128:256] = 0  # a group that was never active
    return (importance,)


def assert_same(scheme: Scheme, weight: Tensor) -> QuantizedWeight:
    importance = importance_for(scheme, weight.shape[1])
    got, want = scheme.quantize(weight, *importance), scheme.plain(weight, *importance)
    for one, other in ((got.codes, want.codes), (got.scales, want.scales)):
        assert one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))
    assert (got.zeros is None) == (want.zeros is None)
    if got.zeros is not None and want.zeros is not None:
        assert got.zeros.dtype == want.zeros.dtype and torch.equal(got.zeros, want.zeros)
    numbers = (want.codes, want.scales, want.zeros)
    sums = scheme.squared_error(weight, *numbers)
    fused.mode = "plain"
    try:
        assert repr(sums) == repr(scheme.squared_error(weight, *numbers))  # exact, and nan is nan
    finally:
        fused.mode = "fused"
    return got


@pytest.mark.parametrize("scheme", [*FP8, *(scheme for scheme in INT4 if scheme.group == 128)], ids=str)
def test_every_bf16_number(scheme: Scheme) -> None:
    """Once among its neighbours, where quotients use all codes, and once among strangers."""
    usable = USABLE[USABLE.float().abs() <= largest(scheme)]
    neighbours = torch.nn.functional.pad(usable, (0, -len(usable) % 257)).view(-1, 257)
    assert_same(scheme, neighbours)
    order = torch.randperm(neighbours.numel(), generator=torch.Generator().manual_seed(1))
    assert_same(scheme, neighbours.flatten()[order].view(neighbours.shape))


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(
    scheme=st.sampled_from([*INT4, *FP8, *FP8, *FP8]),
    rows=st.sampled_from([1, 2, 7, 128, 130]),
    columns=st.sampled_from([1, 31, 32, 33, 127, 128, 200, 300]),
    exponent=st.sampled_from([-133, -126, -30, 0, 8, 120]),
    spread=st.sampled_from([0.0, 1.0, 4.0, 30.0]),
    seed=st.integers(0, 2**20),
)
def test_same_bits(scheme: Scheme, rows: int, columns: int, exponent: int, spread: float, seed: int) -> None:
    assert_same(scheme, mixed(rows, columns, seed, spread, exponent).clamp(-largest(scheme), largest(scheme)))


@pytest.mark.parametrize("scheme", [FP8[0], INT4[0], Int4(64)], ids=str)
def test_slices_and_transposed_weights(scheme: Scheme) -> None:
    weight = mixed(300, 400, 3, 1.0, 0)
    for one in (weight[3:140, 5:300], weight.T, weight[::2]):
        assert_same(scheme, one)


@pytest.mark.parametrize("scheme", [FP8[0], Int4(128), Int4(32, "bf16", "rtn", True)], ids=str)
@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), -float("inf"), 3e38, -3e38])
def test_unusable_values_are_located(scheme: Scheme, value: float) -> None:
    for place in ((0, 0), (129, 5), (199, 299)):
        weight = torch.ones(200, 300, dtype=torch.bfloat16)
        weight[place] = value
        weight[199, 298:] = value
        with pytest.raises(UnusableWeight) as caught:
            scheme.quantize(weight)
        with pytest.raises(UnusableWeight) as plain:
            scheme.plain(weight)
        assert str(caught.value) == str(plain.value)
        assert (caught.value.row, caught.value.column) == min(place, (199, 298))


@pytest.mark.parametrize("scheme", [FP8[0], FP8[2], Int4(64), Int4(128, "f32", "rtn", True)], ids=str)
def test_squared_error_is_the_exact_sum(scheme: Scheme) -> None:
    """Against sums that are rounded once. All terms are positive: n additions and three operations before them leave a
    relative error of at most (n + 3) 2^-53."""
    weight = mixed(50, 300, 5, 1.0, 0)
    got = scheme.plain(weight)
    decoded = got.dequantize(torch.float32).double()
    error, square = scheme.squared_error(weight, got.codes, got.scales, got.zeros)
    limit = (weight.numel() + 3) * 2.0**-53
    assert error == pytest.approx(math.fsum(((decoded - weight.double()) ** 2).flatten().tolist()), rel=limit)
    assert square == pytest.approx(math.fsum((weight.double() ** 2).flatten().tolist()), rel=limit)


def test_what_goes_the_plain_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small weights, other types, F16 scales, and everything if it is asked for."""
    monkeypatch.setattr(fused, "mode", "auto")
    scheme, weight = Int4(128), torch.zeros(512, 512, dtype=torch.bfloat16)
    assert fused.loops_for(scheme, "int4", weight) is not None
    assert fused.loops_for(scheme, "int4", weight[:511]) is None
    assert fused.loops_for(scheme, "int4", weight.float()) is None
    assert fused.loops_for(scheme, "int4", weight.to("meta")) is None
    assert Int4(128, "f16")._loops(weight) is None
    monkeypatch.setattr(fused, "mode", "plain")
    assert fused.loops_for(scheme, "int4", weight) is None


@pytest.mark.parametrize("name", ["int4-g128", "fp8-block128"])
def test_without_numba_conversions_go_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("fp8_block128", "int4", "jit"):
        monkeypatch.delitem(sys.modules, f"qconvert.schemes.fused.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)  # importing it fails
    scheme, weight = get_scheme(name), mixed(512, 512, 0, 1.0, 0)
    assert isinstance(scheme, Scheme)
    with pytest.raises(ImportError):
        scheme.quantize(weight)
    monkeypatch.setattr(fused, "mode", "auto")
    with pytest.warns(RuntimeWarning, match="takes longer: .*numba"):
        got = scheme.quantize(weight)
    assert torch.equal(got.codes.view(torch.uint8), scheme.plain(weight).codes.view(torch.uint8))


@pytest.mark.parametrize("fault", ["codes", "scales", "squared error"])
def test_a_loop_that_differs_is_not_used(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a wrong compiler, or a stale file in its cache, would do."""
    from qconvert.schemes.fused import int4 as loops

    right, right_error = loops.quantize, loops.squared_error

    def wrong(*arguments: Any) -> QuantizedWeight:
        got = right(*arguments)
        if fault == "codes":
            got.codes[3, 5] += 1
        elif fault == "scales":
            got.scales.view(torch.int16)[3, 1] += 1
        return got

    def wrong_error(*arguments: Any) -> tuple[float, float]:
        error, square = right_error(*arguments)
        return (math.nextafter(error, 0) if fault == "squared error" else error), square

    monkeypatch.setattr(loops, "quantize", wrong)
    monkeypatch.setattr(loops, "squared_error", wrong_error)
    scheme, weight = Int4(128), mixed(512, 512, 0, 1.0, 0)
    with pytest.raises(ArithmeticError, match=fault):
        scheme.quantize(weight)
    monkeypatch.setattr(fused, "mode", "auto")
    with pytest.warns(RuntimeWarning, match="differ from those of the plain code"):
        got = scheme.quantize(weight)
    assert torch.equal(got.codes, scheme.plain(weight).codes)


def test_loops_work_where_no_cache_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from numba.core import caching

    def doubled(number: int) -> int:
        return 2 * number

    monkeypatch.setattr(caching.CacheImpl, "_locator_classes", [])  # no folder is writable
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(cache=True)(doubled)
    assert jit.loop(doubled)(21) == 42


def test_small_jobs_do_not_import_numba() -> None:
    script = (
        "import sys, torch; from qconvert.cli import main; from qconvert.schemes import get_scheme\n"
        "for name in ('fp8-block128', 'int4-g128'):\n"
        "    get_scheme(name).quantize(torch.ones(256, 256, dtype=torch.bfloat16))\n"
        "try: main(['quantize', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("scheme", ["fp8-block128", "int4-g64"])
def test_the_same_files(scheme: str, tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "source")
    quantize(source, tmp_path / "fused", scheme=scheme, workers=2)
    fused.mode = "plain"
    quantize(source, tmp_path / "plain", scheme=scheme)
    assert hash_file(tmp_path / "fused" / "model.safetensors") == hash_file(tmp_path / "plain" / "model.safetensors")

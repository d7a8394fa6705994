"""Errors of weights are the same bits for any number of threads, instruction set and cut into chunks.

Inputs are made of integers: torch's normal numbers themselves depend on the instruction set.
"""

import math
import os
import subprocess
import sys
from functools import cache

import pytest
import torch

from qconvert.schemes import get_scheme
from qconvert_evals.metrics import weights
from qconvert_evals.metrics.fixed_order import decibels, fold, tile_squares
from qconvert_evals.metrics.weights import TensorError, WeightState

SCHEMES = ("fp8-block128", "int4-g32")
SHAPE = 300, 416  # tiles at the end are smaller


def some_weight() -> torch.Tensor:
    """BF16 [300, 416] of magnitudes between 2^-11 and 4."""
    bits = torch.randint(0, 2**31, SHAPE, generator=torch.Generator().manual_seed(5))
    return (((bits & 0x86FF) | 0x3800).to(torch.int32) << 16).view(torch.float32).bfloat16()


@cache
def quantized(name: str) -> torch.Tensor:
    """The same weight through a scheme, fp32."""
    return get_scheme(name).quantize(some_weight()).dequantize(torch.float32)


def errors() -> list[TensorError]:
    """Of both formats, and of a plain tensor of three dimensions."""
    base, found = some_weight(), WeightState("fp8")
    for name in SCHEMES:
        weights.update(found, name, "mlp", base, quantized(name), True, get_scheme(name).block)
    weights.update(found, "conv", "conv", base.view(-1, 1, 4), base.view(-1, 1, 4).float() * 1.01, False)
    return found.tensors


def digits(found: list[TensorError]) -> list[str]:
    """Every bit of every number."""
    return [f"{x.hex()}" for one in found for x in (one.error, one.signal, one.max_abs, one.block_error)]


def folded(values: list[float]) -> float:
    """The order of additions as the module's docstring writes it, in Python's doubles."""
    while len(values) > 1:
        n, m = len(values), (len(values) + 1) // 2
        values = [values[i] + values[m + i] for i in range(n - m)] + values[n - m : m]
    return values[0]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 128, 1000])
def test_fold_adds_in_the_written_order(n: int) -> None:
    values = some_weight().double().flatten()[:n] / 3
    expected = folded(values.tolist())
    assert float(fold(values, 0)) == expected
    assert fold(values.expand(5, n).contiguous(), 1).tolist() == [expected] * 5
    assert fold(values[:, None].expand(n, 3).contiguous(), 0).tolist() == [expected] * 3


def test_the_written_order_is_not_that_of_another_sum() -> None:
    """Or the tests here could not fail: rounding does differ between orders on these numbers."""
    values = (some_weight().double().flatten() / 3).tolist()
    running = 0.0
    for one in values:
        running += one
    assert folded(values) not in (running, math.fsum(values))


def off() -> list[float]:
    """How far the sums of both formats are from the exact ones, relatively."""
    base, found = some_weight().float(), []
    for one, name in zip(errors(), SCHEMES, strict=False):
        for summed, values in ((one.error, quantized(name) - base), (one.signal, base)):
            exact = math.fsum(x * x for x in values.double().flatten().tolist())
            found.append(abs(summed / exact - 1))
    return found


def test_sums_are_those_of_the_squares_of_fp32_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairwise sums of N doubles are off by log2(N) 2^-53 at most; sums in fp32, put back, by far more."""
    bound = math.log2(math.prod(SHAPE)) * 2.0**-53
    assert max(off()) <= bound
    monkeypatch.setattr(weights, "tile_squares", lambda values, tile: values.square().sum()[None, None].double())
    assert max(off()) > 1000 * bound


def test_any_number_of_threads_and_any_cut_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    threads, expected = torch.get_num_threads(), digits(errors())
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for cells in (1, 1 << 12, 1 << 16, 1 << 30):
                monkeypatch.setattr(weights, "BAND_CELLS", cells)
                assert digits(errors()) == expected, (count, cells)
    finally:
        torch.set_num_threads(threads)


def test_a_tile_at_the_end_does_not_depend_on_the_band_it_is_in() -> None:
    whole = some_weight().float()
    apart = [tile_squares(part, (128, 128)) for part in whole.split(128)]
    assert torch.equal(tile_squares(whole, (128, 128)), torch.cat(apart))


def test_any_instruction_set_gives_the_same_bits() -> None:
    """ATen's and oneDNN's code paths for lesser processors than this one, each in a process of its own."""
    here = torch.backends.cpu.get_cpu_capability()
    others = {"default": "SSE41", "avx2": "AVX2"} if here == "AVX512" else {"default": "SSE41"}
    code = (
        "from tests.evals.test_fixed_order import *; print(torch.backends.cpu.get_cpu_capability(), digits(errors()))"
    )
    running = {}
    for capability, onednn in others.items():
        asked = {"ATEN_CPU_CAPABILITY": capability, "ONEDNN_MAX_CPU_ISA": onednn}
        env = os.environ | asked | {"PYTHONPATH": os.pathsep.join(sys.path)}
        running[capability] = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)
    expected = digits(errors())
    for capability, process in running.items():
        said, _ = process.communicate()
        assert said == f"{capability.upper()} {expected}\n"


def test_pooled_numbers_do_not_depend_on_the_order_of_tensors() -> None:
    first, second = WeightState("a", errors()), WeightState("b", errors()[::-1])
    rows = [{(m.name, m.slice): m.value for m in weights.result(state).measurements} for state in (first, second)]
    assert rows[0] == rows[1] and all(m.exact for m in weights.result(first).measurements)


def test_decibels_are_those_of_the_logarithm() -> None:
    for ratio in (1.0, 0.1, 0.0265, 3.0, 1e-9):
        assert decibels(ratio) == pytest.approx(-20 * math.log10(ratio), rel=1e-15, abs=1e-15)
    assert decibels(0.1) == 20

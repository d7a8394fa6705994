"""Quantized activations against their naive truth and against the reference model's own rounding."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need triton")

from qconvert_kernels import quantize_activations
from qconvert_kernels.errors import BadInput
from qconvert_kernels.quantize_activations import QuantizedActivations, naive
from qconvert_reference.linear import round_activations
from qconvert_reference.norm import rms_norm

SHAPES = [(1, 128), (7, 300), (17, 256), (33, 1)]


def activations(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    """Magnitudes over nine orders, whole groups of zeros, signed zeros, subnormal numbers."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * 10.0 ** torch.randint(-6, 4, shape, generator=generator)
    x[0, :128] = 0.0
    x.view(-1)[::7] *= -0.0
    if shape[1] > 128:
        x[-1, 128:] *= 1e-38
    return x.to(dtype)


def assert_same(got: QuantizedActivations, want: QuantizedActivations) -> None:
    assert torch.equal(got.codes.view(torch.uint8), want.codes.view(torch.uint8))
    assert torch.equal(got.scales, want.scales)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quantize_equals_naive(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x = activations(*shape, dtype=dtype)
    got = quantize_activations.quantize(x)
    assert_same(got, naive.quantize(x))
    assert torch.equal(naive.dequantize(got), round_activations(x))


def test_quantize_a_slice_of_wider_rows() -> None:
    x = activations(5, 512)[:, 64:364]
    assert_same(quantize_activations.quantize(x), naive.quantize(x))


def test_nan_poisons_its_own_number_only() -> None:
    x = activations(3, 256)
    x[1, 130] = float("nan")
    got = quantize_activations.quantize(x)
    assert got.codes.float().isnan().nonzero().tolist() == [[1, 130]]
    rest = torch.arange(256) != 130
    assert_same(QuantizedActivations(got.codes[:, rest], got.scales), naive_without(x, rest))


def naive_without(x: Tensor, rest: Tensor) -> QuantizedActivations:
    codes, scales = naive.quantize(x.where(rest, torch.zeros_like(x)))
    return QuantizedActivations(codes[:, rest], scales)


def within_one_step(got: Tensor, want: Tensor) -> None:
    """The same bf16 number or its neighbour: fp32 sums and exponentials in another order can cross one middle."""
    steps = got.view(torch.int16).int() - want.view(torch.int16).int()
    assert steps.abs().max() <= 1
    assert (steps != 0).float().mean() < 0.01


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rms_norm_quantize(shape: tuple[int, int]) -> None:
    x = activations(*shape, seed=1)
    weight = torch.randn(shape[1], generator=torch.Generator().manual_seed(2)).bfloat16()
    assert torch.equal(naive.rms_norm(x, weight, 1e-6), rms_norm(x, weight, 1e-6))
    y, got = quantize_activations.rms_norm_quantize(x, weight, 1e-6)
    within_one_step(y, naive.rms_norm(x, weight, 1e-6))
    assert_same(got, naive.quantize(y))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_silu_mul_quantize(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    both = torch.randn(shape[0], 2 * shape[1], generator=generator).mul(8).bfloat16()
    gate, up = both.chunk(2, -1)  # rows of stride 2K
    y, got = quantize_activations.silu_mul_keep_quantize(gate, up)
    # silu may be a neighbour, and then the product too: up to three bf16 steps where both roundings go the same way
    want = naive.silu_mul(gate, up)
    steps = y.view(torch.int16).int() - want.view(torch.int16).int()
    assert steps.abs().max() <= 3
    assert (steps != 0).float().mean() < 0.01
    assert_same(got, naive.quantize(y))
    assert_same(quantize_activations.silu_mul_quantize(gate, up), got)


def test_silu_of_extremes() -> None:
    gate = torch.tensor([[-1e38, -200.0, -90.0, -0.0, 0.0, 90.0, 1e38]]).bfloat16()
    y, _ = quantize_activations.silu_mul_keep_quantize(gate, torch.ones_like(gate))
    assert torch.equal(y, naive.silu_mul(gate, torch.ones_like(gate)))


def test_no_tokens() -> None:
    codes, scales = quantize_activations.quantize(torch.zeros(0, 256))
    assert codes.shape == (0, 256) and scales.shape == (0, 2)


def test_bad_input_is_named() -> None:
    with pytest.raises(BadInput, match=r"up: expected \[2, 128\] bfloat16, found \[2, 64\] bfloat16"):
        quantize_activations.silu_mul_quantize(torch.zeros(2, 128).bfloat16(), torch.zeros(2, 64).bfloat16())
    with pytest.raises(BadInput, match="contiguous, its stride is 2"):
        quantize_activations.quantize(torch.zeros(128, 2).T)

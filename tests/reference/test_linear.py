"""Every variant of a linear layer beside the equation it stands for."""

import torch

from qconvert.schemes import get_scheme
from qconvert_reference.linear import Numerics, make_linear, round_activations

W = torch.randn(96, 300, generator=torch.Generator().manual_seed(0))
X = torch.randn(3, 5, 300, generator=torch.Generator().manual_seed(1)).bfloat16()


def rounded_once(exact: torch.Tensor, y: torch.Tensor) -> None:
    """y is the BF16 number next to the exact value, or its neighbour if fp32 summation crossed the middle: one ulp."""
    assert y.dtype == torch.bfloat16
    assert ((y.double() - exact).abs() <= exact.abs() * 2**-8 * 1.01 + 1e-5).all()


def test_dense_bf16_accumulates_in_fp32() -> None:
    weight = W.bfloat16()
    rounded_once(X.double() @ weight.double().T, make_linear(weight, Numerics())(X))


def test_split_is_another_order_of_the_same_sum() -> None:
    weight = W.bfloat16()
    plain, split = (make_linear(weight, Numerics(torch.float32, accumulation=a))(X) for a in ("plain", "split"))
    torch.testing.assert_close(plain, split, rtol=0, atol=300 * 2**-24 * float(plain.abs().max()))
    rounded_once(X.double() @ weight.double().T, make_linear(weight, Numerics(accumulation="split"))(X))


def test_dequantizing_multiplies_the_rounded_weight() -> None:
    quantized = get_scheme("fp8-block128").quantize(W)
    for keep in (True, False):
        linear = make_linear(quantized, Numerics(keep_dequantized=keep))
        assert torch.equal(linear.weight(), quantized.dequantize(torch.bfloat16))
        assert (linear.weight() is linear.weight()) == keep
        rounded_once(X.double() @ quantized.dequantize(torch.bfloat16).double().T, linear(X))


def test_w8a8_is_codes_times_codes_times_scales() -> None:
    """The sum that a block-FP8 kernel computes, group by group of K, in fp64."""
    quantized = get_scheme("fp8-block128").quantize(W)
    y = make_linear(quantized, Numerics(activations="fp8-group128"))(X)
    exact = torch.zeros(3, 5, 96, dtype=torch.float64)
    for block, start in enumerate(range(0, 300, 128)):
        group = X[..., start : start + 128].float()
        scale = group.abs().amax(-1, keepdim=True) / 448
        codes = (group / scale).to(torch.float8_e4m3fn).double()
        weight = quantized.codes[:, start : start + 128].double()
        exact += (codes @ weight.T) * scale.double() * quantized.scales[0, block].double()
    rounded_once(exact, y)


def test_activation_rounding_handles_zeros_and_extremes() -> None:
    x = torch.zeros(2, 256)
    x[1, :3] = torch.tensor([448.0, 1.0, -1e-30])
    rounded = round_activations(x)
    assert torch.equal(rounded, x.masked_fill(x.abs() < 1e-20, 0))


def test_unquantized_weights_keep_their_activations() -> None:
    weight = W.bfloat16()
    assert torch.equal(make_linear(weight, Numerics(activations="fp8-group128"))(X), make_linear(weight, Numerics())(X))


def test_parameters_are_read_anew_and_get_gradients() -> None:
    weight = torch.nn.Parameter(W.clone())
    linear = make_linear(weight, Numerics())
    before = linear(X)
    before.float().sum().backward()
    assert weight.grad is not None and weight.grad.dtype == torch.float32 and bool(weight.grad.abs().sum() > 0)
    with torch.no_grad():
        weight.mul_(2)
    assert torch.equal(linear(X), before * 2)

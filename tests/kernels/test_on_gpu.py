"""The kernels on a real GPU: what the interpreter cannot see (layouts, TMA, assembly, races), with the default tilings.

What Hopper's tensor cores do is coarser than fp32. One instruction takes 32 products of e4m3 and the sum so far, aligns
all 33 to the largest and cuts each at 13 bits behind its leading one, so it errs by less than 33 * 2^-13 * 2 * largest.
Products of bf16 are cut like fp32: less than 17 * 2^-23 * 2 * largest for 16 of them. `allowed` adds that up exactly.
The 13 bits are DeepSeek's measurement, the 23 an assumption; neither was tried on a GPU by us yet.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need triton")

from qconvert_kernels import fp8_gemm, int4_gemm, quantize_activations
from qconvert_kernels.configurations import entries
from qconvert_kernels.fp8_gemm import naive as fp8_naive
from qconvert_kernels.int4_gemm import naive as int4_naive
from qconvert_kernels.quantize_activations.naive import dequantize, quantize
from qconvert_kernels.tiling import Tiling

DEVICE = torch.device("cuda")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
CASES = [
    (kernel, tiling)
    for kernel in ("fp8_w8a8", "fp8_w8a16", "int4_w4a16")
    for tiling in dict.fromkeys(
        replace(entry.tiling, splits=min(entry.tiling.splits, 3)) for entry in entries(kernel, "default")
    )
]
M, N, K = 129, 264, 1024  # ragged tiles of tokens and weights; strides that TMA takes


def allowed(x: Tensor, weight: Tensor, terms: int, bits: int) -> Tensor:
    """[M, N]: what instructions of `terms` products, cut at `bits`, may lose in blocks of 128; x, weight fp64."""
    total = torch.zeros(x.shape[0], weight.shape[0], dtype=torch.float64, device=x.device)
    for start in range(0, x.shape[1], 128):
        products = x[:, None, start : start + 128] * weight[None, :, start : start + 128]
        products = products.unflatten(-1, (-1, terms))  # [M, N, instructions, terms]
        sums = products.sum(-1).cumsum(-1).abs()
        largest = torch.maximum(products.abs().amax(-1), sums)
        largest[..., 1:] = torch.maximum(largest[..., 1:], sums[..., :-1])
        total += (terms + 1) * 2.0 ** (1 - bits) * largest.sum(-1)
    return total + x.shape[1] / 32 * 2.0**-23 * (x.abs() @ weight.abs().T)  # scaling and adding the blocks in fp32


def inputs(kernel: str, positive: bool) -> tuple[tuple[object, ...], Tensor, Tensor]:
    """Arguments of the kernel, and x and the weight in fp64."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(M, K, generator=generator)
    x = (x.abs() if positive else x).bfloat16().to(DEVICE)
    if kernel == "int4_w4a16":
        codes = torch.randint(0 if positive else -8, 8, (N, K), generator=generator, dtype=torch.int8)
        scales = torch.rand(N, K // 64, generator=generator).bfloat16()
        zeros = torch.randint(-8, 1, scales.shape, generator=generator, dtype=torch.int8)
        packed = int4_gemm.repack(codes.to(DEVICE), scales.to(DEVICE), zeros.to(DEVICE), group=64)
        return (x, packed), x.double(), int4_naive.dequantize(packed, torch.float64)
    codes = torch.randn(N, K, generator=generator).mul(100).clamp(-448, 448)
    codes = (codes.abs() if positive else codes).to(torch.float8_e4m3fn).to(DEVICE)
    scales = torch.rand(-(-N // 128), K // 128, generator=generator).bfloat16().to(DEVICE)
    weight = fp8_naive.dequantize(codes, scales, torch.float64)
    if kernel == "fp8_w8a16":
        return (x, codes, scales), x.double(), weight
    quantized = quantize(x)
    return (quantized, codes, scales), dequantize(quantized, torch.float64), weight


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("positive", [False, True], ids=["signed", "positive"])
@pytest.mark.parametrize(("kernel", "tiling"), CASES, ids=str)
def test_products(kernel: str, tiling: Tiling, positive: bool) -> None:
    arguments, x, weight = inputs(kernel, positive)
    run = int4_gemm.int4_gemm_nt if kernel == "int4_w4a16" else fp8_gemm.fp8_block_gemm_nt
    first, second = (run(*arguments, out_dtype=torch.float32, tiling=tiling) for _ in range(2))  # type: ignore[operator]
    assert torch.equal(first, second), "two runs differ: a race"
    error = (first.double() - x @ weight.T).abs()
    limit = allowed(x, weight, 32, 13) if kernel == "fp8_w8a8" else allowed(x, weight, 16, 23)
    assert (error <= limit).all(), f"largest error is {(error / limit).max():.3g} of what is allowed"


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("width", [128, 300, 2048])
def test_codes_equal_those_of_a_cpu(width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(67, width, generator=generator) * 10.0 ** torch.randint(-6, 4, (67, width), generator=generator)
    want, got = quantize(x.bfloat16()), quantize_activations.quantize(x.bfloat16().to(DEVICE))
    assert torch.equal(got.codes.cpu().view(torch.uint8), want.codes.view(torch.uint8))
    assert torch.equal(got.scales.cpu(), want.scales)
    y, behind = quantize_activations.rms_norm_quantize(x.bfloat16().to(DEVICE), torch.zeros(width, device=DEVICE), 1e-6)
    again = quantize(y.cpu())
    assert torch.equal(behind.codes.cpu().view(torch.uint8), again.codes.view(torch.uint8))
    assert torch.equal(behind.scales.cpu(), again.scales)


@pytest.mark.parametrize(("terms", "bits"), [(32, 13), (16, 23)])
def test_the_bound_sees_wrong_layouts(terms: int, bits: int) -> None:
    """Two neighbouring runs of K exchanged, or the last block left out: almost every result is outside."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 1024, generator=generator, dtype=torch.float64)
    weight = torch.randn(16, 1024, generator=generator, dtype=torch.float64)
    limit = allowed(x, weight, terms, bits)
    exchanged = x.view(8, -1, 2, 32).flip(2).reshape(8, 1024)
    shortened = x * (torch.arange(1024) < 896)
    for wrong in (exchanged, shortened):
        assert (((wrong - x) @ weight.T).abs() > limit).double().mean() > 0.8

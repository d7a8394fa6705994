"""All products over random shapes and tilings, and exactly where the numbers allow it."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need triton")

from qconvert_kernels.fp8_gemm import fp8_block_gemm_nt
from qconvert_kernels.fp8_gemm import naive as fp8_naive
from qconvert_kernels.int4_gemm import int4_gemm_nt, repack
from qconvert_kernels.int4_gemm import naive as int4_naive
from qconvert_kernels.quantize_activations.naive import QuantizedActivations, dequantize, quantize
from qconvert_kernels.tiling import Tiling
from tests.kernels.bounds import assert_close

TILINGS = [
    Tiling("few_tokens", 16, 64, 1, 4, 4),
    Tiling("few_tokens", 32, 128, 2, 8, 4),
    Tiling("many_tokens", 64, 128, 1, 8, 4),
]
few_examples = settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
sizes = st.tuples(st.integers(1, 70), st.integers(1, 150), st.integers(1, 300))


@few_examples
@given(sizes, st.sampled_from(TILINGS), st.integers(0, 2**31))
def test_fp8(shape: tuple[int, int, int], tiling: Tiling, seed: int) -> None:
    (m, n, k), generator = shape, torch.Generator().manual_seed(seed)
    codes = torch.randn(n, k, generator=generator).mul(100).clamp(-448, 448).to(torch.float8_e4m3fn)
    scales = torch.randn(-(-n // 128), -(-k // 128), generator=generator).bfloat16()
    x = torch.randn(m, k, generator=generator).bfloat16()
    weight = fp8_naive.dequantize(codes, scales, torch.float64)
    codes_of_x = quantize(x)
    y = fp8_block_gemm_nt(codes_of_x, codes, scales, out_dtype=torch.float32, tiling=tiling)
    assert_close(y, dequantize(codes_of_x, torch.float64), weight)
    if tiling.path == "few_tokens":
        assert_close(fp8_block_gemm_nt(x, codes, scales, tiling=tiling), x.double(), weight)
    assert_close(fp8_naive.fp8_block_gemm_nt(x, codes, scales), x.double(), weight, plain_sum_of=k)


@few_examples
@given(sizes, st.sampled_from(TILINGS[:2]), st.sampled_from([32, 64, 128]), st.booleans(), st.integers(0, 2**31))
def test_int4(shape: tuple[int, int, int], tiling: Tiling, group: int, asymmetric: bool, seed: int) -> None:
    (m, n, k), generator = shape, torch.Generator().manual_seed(seed)
    codes = torch.randint(-8, 8, (n, k), generator=generator, dtype=torch.int8)
    scales = torch.randn(n, -(-k // group), generator=generator).bfloat16()
    zeros = torch.randint(-8, 8, scales.shape, generator=generator, dtype=torch.int8) if asymmetric else None
    packed = repack(codes, scales, zeros, group=group)
    x = torch.randn(m, k, generator=generator).bfloat16()
    weight = int4_naive.dequantize(packed, torch.float64)
    assert_close(int4_gemm_nt(x, packed, out_dtype=torch.float32, tiling=tiling), x.double(), weight)
    assert_close(int4_naive.int4_gemm_nt(x, packed), x.double(), weight, plain_sum_of=k)


def integers(*shape: int, most: int, seed: int) -> Tensor:
    return torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


@pytest.mark.parametrize("tiling", TILINGS, ids=str)
def test_exact_on_integers_with_scales_of_two(tiling: Tiling) -> None:
    """Every partial sum is a small integer times a power of two, which fp32 holds: not one bit may differ."""
    x, codes = integers(20, 384, most=16, seed=0), integers(136, 384, most=16, seed=1).to(torch.float8_e4m3fn)
    scales = 2.0 ** integers(2, 3, most=3, seed=2)
    exact = x.double() @ fp8_naive.dequantize(codes, scales, torch.float64).T
    ones = QuantizedActivations(x.to(torch.float8_e4m3fn), torch.ones(20, 3))
    assert torch.equal(fp8_block_gemm_nt(ones, codes, scales, out_dtype=torch.float32, tiling=tiling).double(), exact)
    if tiling.path == "few_tokens":
        y = fp8_block_gemm_nt(x.bfloat16(), codes, scales, out_dtype=torch.float32, tiling=tiling)
        assert torch.equal(y.double(), exact)
        packed = repack(
            integers(136, 384, most=7, seed=3).to(torch.int8), 2.0 ** integers(136, 6, most=3, seed=4), group=64
        )
        y = int4_gemm_nt(x.bfloat16(), packed, out_dtype=torch.float32, tiling=tiling)
        assert torch.equal(y.double(), x.double() @ int4_naive.dequantize(packed, torch.float64).T)


def test_rows_of_wider_matrices() -> None:
    """x and the weight as slices of columns: rows further apart than they are long."""
    x, codes = integers(5, 512, most=16, seed=0), integers(72, 512, most=16, seed=1).to(torch.float8_e4m3fn)
    x, codes, scales = x.bfloat16()[:, 128:400], codes[:, 64:336], torch.ones(1, 3)
    want = (x.double() @ codes.double().T).float()
    assert torch.equal(fp8_block_gemm_nt(x, codes, scales, out_dtype=torch.float32), want)
    packed = repack(codes.float().clamp(-8, 7).to(torch.int8), torch.ones(72, 3), group=128)
    want = (x.double() @ int4_naive.dequantize(packed, torch.float64).T).float()
    assert torch.equal(int4_gemm_nt(x, packed, out_dtype=torch.float32), want)

"""INT4 products against fp64: every group size, zero points, negative scales, ragged shapes, splits."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need triton")

from qconvert_kernels.errors import BadInput
from qconvert_kernels.int4_gemm import PackedInt4, int4_gemm_nt, naive, repack
from qconvert_kernels.tiling import Tiling
from tests.kernels.bounds import assert_close

FEW = Tiling("few_tokens", 16, 64, 1, 4, 4)
SPLIT = Tiling("few_tokens", 16, 64, 3, 4, 4)
WIDE = Tiling("few_tokens", 64, 128, 1, 8, 4)


def packed(n: int, k: int, group: int, *, zeros: bool, positive: bool = False) -> PackedInt4:
    generator = torch.Generator().manual_seed(n + k + group)
    codes = torch.randint(0 if positive else -8, 8, (n, k), generator=generator, dtype=torch.int8)
    shape = (n, -(-k // group))
    scales = torch.randn(shape, generator=generator) * 10.0 ** torch.randint(-3, 1, shape, generator=generator)
    points = torch.randint(-8, 0 if positive else 8, shape, generator=generator, dtype=torch.int8) if zeros else None
    return repack(codes, (scales.abs() if positive else scales).bfloat16(), points, group=group)


def tokens(m: int, k: int) -> Tensor:
    return torch.randn(m, k, generator=torch.Generator().manual_seed(1)).bfloat16()


def check(x: Tensor, weight: PackedInt4, tiling: Tiling, dtype: torch.dtype = torch.float32) -> None:
    y = int4_gemm_nt(x, weight, out_dtype=dtype, tiling=tiling)
    assert y.dtype == dtype
    assert_close(y, x.double(), naive.dequantize(weight, torch.float64))


@pytest.mark.parametrize("zeros", [False, True], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("group", [32, 64, 128])
@pytest.mark.parametrize("shape", [(1, 64, 128), (7, 200, 300), (129, 72, 416)], ids=str)
def test_products(shape: tuple[int, int, int], group: int, zeros: bool) -> None:
    m, n, k = shape
    check(tokens(m, k), packed(n, k, group, zeros=zeros), WIDE if m > 64 else FEW)


@pytest.mark.parametrize("tiling", [SPLIT, WIDE], ids=str)
def test_tilings(tiling: Tiling) -> None:
    check(tokens(17, 384), packed(129, 384, 64, zeros=True), tiling)


def test_bf16_results_of_positive_factors() -> None:
    check(tokens(20, 256).abs(), packed(136, 256, 128, zeros=True, positive=True), FEW, torch.bfloat16)


def test_every_code_with_every_zero_point() -> None:
    """x picks out single weights: 256 pairs of code and zero point, exactly."""
    codes = torch.arange(-8, 8, dtype=torch.int8).repeat(16, 8)  # [16, 128]: each row all codes, eight times
    points = torch.arange(-8, 8, dtype=torch.int8)[:, None]
    y = int4_gemm_nt(torch.eye(128).bfloat16(), repack(codes, torch.ones(16, 1), points, group=128), tiling=FEW)
    assert torch.equal(y, (codes - points).T.bfloat16())


def test_float16_and_float32_scales() -> None:
    weight = packed(64, 128, 32, zeros=False)
    for dtype in (torch.float16, torch.float32):
        check(tokens(3, 128), weight._replace(scales=weight.scales.to(dtype)), FEW)


def test_the_default_tiling() -> None:
    x, weight = tokens(5, 512), packed(128, 512, 128, zeros=False)
    assert_close(int4_gemm_nt(x, weight), x.double(), naive.dequantize(weight, torch.float64))


def test_bad_input_is_named() -> None:
    weight = packed(64, 256, 128, zeros=False)
    with pytest.raises(BadInput, match=r"x: expected \[-1, 256\] bfloat16, found \[2, 128\] bfloat16"):
        int4_gemm_nt(tokens(2, 128), weight)
    with pytest.raises(BadInput, match=r"words: expected \[1, 2, 64, 32\] int16"):
        int4_gemm_nt(tokens(2, 256), weight._replace(words=weight.words[:, :1]))
    with pytest.raises(BadInput, match="scales: must be contiguous"):
        int4_gemm_nt(tokens(2, 256), weight._replace(scales=weight.scales.repeat(1, 2)[:, :64]))

"""What weight quantization rests on: constants that are those of the core, and why no product may be fused. And on a
real GPU, the bytes."""

import itertools

import pytest
import torch

from qconvert.schemes import fp8_block128 as fp8
from qconvert.schemes import fused
from qconvert.schemes.fp8_block128 import Fp8Block128
from qconvert.schemes.int4 import Int4, rules
from qconvert.schemes.scheme import add_rows
from qconvert_kernels import quantize_weights
from qconvert_kernels.quantize_weights import naive

KINDS = itertools.product((32, 64, 128), ("bf16", "f32"), ("rtn", "mse"), (False, True))
SCHEMES = [*(Fp8Block128(scales) for scales in ("bf16", "f32", "pow2")), *(Int4(*kind) for kind in KINDS)]


def test_constants_are_those_of_the_schemes() -> None:
    assert (naive.BLOCK, naive.CODE_MAX) == (fp8.BLOCK, fp8.CODE_MAX)
    assert naive.SMALLEST_SCALE == fp8.SMALLEST_SCALE == rules.SMALLEST_SCALE
    assert naive.limit(False) == fp8.LARGEST_WEIGHT == Int4().largest
    assert naive.limit(True) == Int4(asymmetric=True).largest
    for name in ("LOWEST", "HIGHEST", "SHRINK", "SHORTEST", "LONGEST", "GRID", "GRID_ASYMMETRIC"):
        assert getattr(naive, name) == getattr(rules, name), name


@pytest.mark.parametrize(("grid", "width", "differing"), [(rules.GRID, 8.0, 20), (rules.GRID_ASYMMETRIC, 15.0, 0)])
def test_fused_products_would_give_other_codes(grid: float, width: float, differing: int) -> None:
    """Every integer weight in every range of the search: adding 1.5 * 2^23 and subtracting it rounds as torch does, if
    the product was rounded before; and where it was not, as in a fused operation, some codes are others."""
    steps, found = torch.arange(-grid, grid + 1), 0
    for part in rules.SHRINK:
        factor = torch.tensor(width / (part * grid))
        product = steps.float() * factor
        assert torch.equal((product + 12582912.0) - 12582912.0, torch.mul(steps.float(), width / (part * grid)).round())
        found += int((product.round() != (steps.double() * factor.double()).round()).sum())
    assert found == differing


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_gpu_gives_the_bytes_of_a_cpu(scheme: Fp8Block128 | Int4) -> None:
    """Every kind of number, every usable BF16 number, one number alone, and enough to fill the machine."""
    pytest.importorskip("triton", reason="the kernels need triton")
    offered = quantize_weights.offer(scheme.name, vars(scheme), torch.device("cuda"))
    assert offered is not None
    every = torch.arange(-0x8000, 0x8000, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    usable = every[every.float().abs() <= naive.limit(True)]
    generator = torch.Generator().manual_seed(0)
    samples = fused.sample(), fused.sample().float() * 1.0001, fused.sample()[:1, :1], fused.sample()[:, :1]
    large = torch.randn(3000, 2048, generator=generator).mul(0.02).bfloat16()
    for weight in (*samples, usable[None], usable[:65000].view(65, 1000), large):
        want, got = scheme.plain(weight), offered.quantize(weight.cuda())
        for part in ("codes", "scales", "zeros"):
            one, other = getattr(got, part), getattr(want, part)
            assert one is None or torch.equal(one.cpu().view(torch.uint8), other.view(torch.uint8)), part
        sums = offered.squared_errors(weight.cuda(), *got).cpu()
        assert (add_rows(sums[0]), add_rows(sums[1])) == want.squared_error(weight)
    large[2999, 2047] = float("nan")
    assert int(offered.quantize(large.cuda()).scales.isnan().sum()) == 1

"""Block-FP8 products against fp64, on ragged shapes, split, persistent, and with bf16 activations."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need triton")

from qconvert_kernels import fp8_gemm
from qconvert_kernels.errors import BadInput
from qconvert_kernels.fp8_gemm import fp8_block_gemm_nt, naive
from qconvert_kernels.quantize_activations.naive import QuantizedActivations, dequantize, quantize
from qconvert_kernels.tiling import Tiling
from tests.kernels.bounds import assert_close

FEW = Tiling("few_tokens", 16, 64, 1, 4, 4)
SPLIT = Tiling("few_tokens", 16, 64, 3, 4, 4)
WIDE = Tiling("few_tokens", 64, 128, 1, 4, 4)
MANY = Tiling("many_tokens", 64, 128, 1, 8, 4)
MANY_NARROW = Tiling("many_tokens", 128, 64, 1, 8, 4)


def weights(n: int, k: int, *, positive: bool = False, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Codes over the whole range of e4m3 and scales over four orders, some of them negative."""
    generator = torch.Generator().manual_seed(seed)
    codes = (torch.randn(n, k, generator=generator) * 100).clamp(-448, 448)
    scales = torch.randn(-(-n // 128), -(-k // 128), generator=generator)
    scales = scales * 10.0 ** torch.randint(-3, 1, scales.shape, generator=generator)
    if positive:
        codes, scales = codes.abs(), scales.abs()
    return codes.to(torch.float8_e4m3fn), scales.bfloat16()


def tokens(m: int, k: int, *, positive: bool = False) -> Tensor:
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(1))
    return (x.abs() if positive else x).bfloat16()


def check(x: Tensor | QuantizedActivations, codes: Tensor, scales: Tensor, tiling: Tiling, dtype: torch.dtype) -> None:
    y = fp8_block_gemm_nt(x, codes, scales, out_dtype=dtype, tiling=tiling)
    assert y.dtype == dtype
    dense = x.double() if isinstance(x, Tensor) else dequantize(x, torch.float64)
    assert_close(y, dense, naive.dequantize(codes, scales, torch.float64))


SHAPES = [(1, 64, 128), (7, 200, 300), (17, 129, 256), (129, 72, 400)]


@pytest.mark.parametrize("tiling", [FEW, SPLIT, WIDE, MANY, MANY_NARROW], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_w8a8(shape: tuple[int, int, int], tiling: Tiling) -> None:
    m, n, k = shape
    check(quantize(tokens(m, k)), *weights(n, k), tiling, torch.float32)


@pytest.mark.parametrize("tiling", [FEW, SPLIT, WIDE], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_w8a16(shape: tuple[int, int, int], tiling: Tiling) -> None:
    m, n, k = shape
    check(tokens(m, k), *weights(n, k), tiling, torch.float32)


@pytest.mark.parametrize("tiling", [FEW, SPLIT, MANY], ids=str)
def test_bf16_results_of_positive_factors(tiling: Tiling) -> None:
    x = tokens(20, 384, positive=True)
    codes, scales = weights(136, 384, positive=True)
    check(quantize(x), codes, scales, tiling, torch.bfloat16)
    if tiling.path == "few_tokens":
        check(x, codes, scales.float(), tiling, torch.bfloat16)


def test_many_tokens_is_taken_when_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    monkeypatch.setattr(fp8_gemm, "_many_tokens", lambda *a: taken.append("many"))
    monkeypatch.setattr(fp8_gemm, "_few_tokens", lambda *a: taken.append("few"))
    for n, k in [(128, 128), (127, 128), (128, 120)]:  # aligned; rows of y, rows of x and W not at 16 bytes
        fp8_block_gemm_nt(quantize(tokens(300, k)), *weights(n, k))
    assert taken == ["many", "few", "few"]


def test_more_programs_than_tiles_and_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    x, (codes, scales) = quantize(tokens(150, 256)), weights(136, 256)
    for programs in (1, 3, 500):
        monkeypatch.setattr(fp8_gemm, "processors", lambda _, programs=programs: programs)
        check(x, codes, scales, MANY, torch.float32)


def test_splitting_is_deterministic_and_never_wider_than_k() -> None:
    x, (codes, scales) = tokens(3, 256), weights(64, 256)
    tiling = Tiling("few_tokens", 16, 64, 16, 4, 4)
    first, second = (fp8_block_gemm_nt(x, codes, scales, tiling=tiling) for _ in range(2))
    assert torch.equal(first, second)
    check(x, codes, scales, tiling, torch.float32)


def test_rows_far_apart() -> None:
    """Offsets beyond 2^31; the memory between the rows is never touched."""
    codes, scales = weights(4, 128)
    storage = torch.zeros(1).new_empty(3 * 2**30 + 128, dtype=torch.uint8)
    far = storage.as_strided((4, 128), (2**30, 1))
    far.copy_(codes.view(torch.uint8))
    check(tokens(2, 128), far.view(torch.float8_e4m3fn), scales, FEW, torch.float32)


def test_nothing_in_nothing_out() -> None:
    codes, scales = weights(64, 128)
    assert fp8_block_gemm_nt(tokens(0, 128), codes, scales).shape == (0, 64)


def test_bad_input_is_named() -> None:
    codes, scales = weights(130, 128)
    with pytest.raises(BadInput, match=r"scales: expected \[2, 1\] bfloat16 or float32, found \[1, 1\] bfloat16"):
        fp8_block_gemm_nt(tokens(2, 128), codes, scales[:1])
    with pytest.raises(BadInput, match=r"x: expected \[-1, 128\] bfloat16, found \[2, 128\] float32"):
        fp8_block_gemm_nt(tokens(2, 128).float(), codes, scales)
    with pytest.raises(BadInput, match=r"x.scales: expected \[2, 1\]"):
        fp8_block_gemm_nt(QuantizedActivations(codes[:2], torch.ones(2, 2)), codes, scales)
    with pytest.raises(BadInput, match="tensors on different devices: x cpu, codes cpu, scales meta"):
        fp8_block_gemm_nt(tokens(2, 128), codes, scales.to("meta"))
    with pytest.raises(BadInput, match="takes eight-bit activations only"):
        fp8_block_gemm_nt(tokens(2, 128), codes, scales, tiling=MANY)


def test_the_bound_sees_one_wrong_scale() -> None:
    """A scale of one block off by a bf16 step is outside the bound."""
    x, (codes, scales) = tokens(2, 256), weights(64, 256)
    scales[0, 1] *= 1 + 2**-7
    y = fp8_block_gemm_nt(x, codes, scales, out_dtype=torch.float32)
    scales[0, 1] /= 1 + 2**-7
    with pytest.raises(AssertionError, match="off, first at"):
        assert_close(y, x.double(), naive.dequantize(codes, scales, torch.float64))

"""The idioms of `numerics` against torch, bit for bit, in the interpreter."""

import pytest
import torch

pytest.importorskip("triton", reason="the kernels need triton")
import triton
import triton.language as tl

from qconvert_kernels.numerics import dot, narrow, widen


@triton.jit
def _narrow(X, Y, n, dtype: tl.constexpr):
    i = tl.program_id(0) * 4096 + tl.arange(0, 4096)
    tl.store(Y + i, narrow(tl.load(X + i, i < n), dtype), i < n)


@triton.jit
def _widen(X, Y, n):
    i = tl.program_id(0) * 4096 + tl.arange(0, 4096)
    tl.store(Y + i, widen(tl.load(X + i, i < n)), i < n)


@triton.jit
def _dot(A, B, C, M: tl.constexpr, N: tl.constexpr, K: tl.constexpr):
    m, n, k = tl.arange(0, M), tl.arange(0, N), tl.arange(0, K)
    a, b = tl.load(A + m[:, None] * K + k[None, :]), tl.load(B + k[:, None] * N + n[None, :])
    c = tl.load(C + m[:, None] * N + n[None, :])
    tl.store(C + m[:, None] * N + n[None, :], dot(a, b, c) + dot(a, b))


def narrowed(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    y = torch.full((x.numel(),), float("nan")).to(dtype)
    code = {torch.bfloat16: tl.bfloat16, torch.float8_e4m3fn: tl.float8e4nv, torch.float32: tl.float32}[dtype]
    _narrow[(triton.cdiv(x.numel(), 4096),)](x, y, x.numel(), code)
    return y


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.view({1: torch.uint8, 2: torch.int16, 4: torch.int32}[x.element_size()])


def random_floats() -> torch.Tensor:
    """Every exponent of fp32, infinities included, NaN not."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-(2**31), 2**31, (200_000,), generator=generator).int().view(torch.float32)
    return torch.cat([x[~x.isnan()], torch.randn(50_000, generator=generator), torch.tensor([torch.inf, -torch.inf])])


def ties_and_neighbours(grid: torch.Tensor) -> torch.Tensor:
    """Every number of a format, the middles between neighbours, and the fp32 numbers beside both."""
    grid = grid.float().unique()
    middles = (grid[1:].double() / 2 + grid[:-1].double() / 2).float()
    x = torch.cat([grid, middles, torch.tensor([-0.0])])
    infinity = torch.tensor(torch.inf)
    return torch.cat([x, x.nextafter(infinity), x.nextafter(-infinity)])


@pytest.mark.parametrize("x", [random_floats(), pytest.param(None, id="ties")], ids=["random", "ties"])
def test_to_bf16(x: torch.Tensor | None) -> None:
    if x is None:
        every = torch.arange(2**16).int().to(torch.int16).view(torch.bfloat16)
        x = ties_and_neighbours(every[every.isfinite()])
    assert torch.equal(bits(narrowed(x, torch.bfloat16)), bits(x.to(torch.bfloat16)))


def e4m3_codes() -> torch.Tensor:
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)


def test_to_e4m3_saturates_and_rounds_half_to_even() -> None:
    codes = e4m3_codes().float()
    x = torch.cat([random_floats(), random_floats().bfloat16().float(), ties_and_neighbours(codes[~codes.isnan()])])
    small = (torch.rand(100_000, generator=torch.Generator().manual_seed(1)) - 0.5) * 2**-5  # subnormal codes
    x = torch.cat([x, small, torch.tensor([464.0, 464.1, 1e30, -480.0])])
    assert torch.equal(bits(narrowed(x, torch.float8_e4m3fn)), bits(x.clamp(-448, 448).to(torch.float8_e4m3fn)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float32], ids=str)
def test_nan_stays_nan(dtype: torch.dtype) -> None:
    nans = torch.tensor([0x7FC00000, 0x7FFFFFFF, 0x7F800001, -1, -0x400000], dtype=torch.int32).view(torch.float32)
    assert nans.isnan().all()
    assert narrowed(nans, dtype).float().isnan().all()


def test_widen_every_code() -> None:
    for x in (e4m3_codes(), torch.arange(2**16).int().to(torch.int16).view(torch.bfloat16)):
        y = torch.zeros(x.numel())
        _widen[(triton.cdiv(x.numel(), 4096),)](x, y, x.numel())
        want = x.float()
        assert torch.equal(y.isnan(), want.isnan())
        assert torch.equal(bits(y)[~want.isnan()], bits(want)[~want.isnan()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float16], ids=str)
def test_dot_is_exact_on_small_integers(dtype: torch.dtype) -> None:
    """Sums of products that fp32 holds exactly: any error of the factors shows."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-16, 17, (16, 32), generator=generator)
    b = torch.randint(-16, 17, (32, 16), generator=generator)
    c = torch.randint(-99, 99, (16, 16), generator=generator)
    got = c.float()
    _dot[(1,)](a.to(dtype), b.to(dtype), got, 16, 16, 32)
    assert torch.equal(got, (c + 2 * (a @ b)).float())

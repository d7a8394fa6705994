"""The two ends of a grouped product: sorting pairs by expert, and adding up each token's k results.

    count     [E] pairs of each expert
    sort      the layout of `routing`, from these counts
    combine   y[t] = sum over slots s of weights[t, s] * z[t k + s], slot after slot, in fp32

One program an expert reads all routes (40 KB for 1,024 tokens, from the L2 cache), so that ranks and counts need
neither atomics nor a sort: the layout is the same on every run. Two launches, as every expert's place depends on all
counts.
"""

from __future__ import annotations

import triton
import triton.language as tl

from qconvert_kernels.numerics import narrow, widen


@triton.jit(do_not_specialize=["total"])
def count(ROUTES, COUNTS, total, CHUNK: tl.constexpr):
    """Program e: how many of ROUTES [P] are e."""
    expert = tl.program_id(0)
    counts = tl.zeros([CHUNK], tl.int32)
    for begin in range(0, total, CHUNK):
        at = begin + tl.arange(0, CHUNK)
        counts += (tl.load(ROUTES + at, mask=at < total, other=-1) == expert).to(tl.int32)
    tl.store(COUNTS + expert, tl.sum(counts, 0))


@triton.jit(do_not_specialize=["total", "blocks"])
def sort(
    ROUTES, COUNTS, PAIRS, EXPERTS, DISTINCT, total, blocks,
    E: tl.constexpr, TILE: tl.constexpr, CHUNK: tl.constexpr, ALL: tl.constexpr,
):  # fmt: skip
    """Program e fills the blocks of expert e; program E those that are left over. ALL: E rounded up to a power of 2."""
    expert = tl.program_id(0)
    other = tl.arange(0, ALL)
    counts = tl.load(COUNTS + other, mask=other < E, other=0)
    first = tl.sum(tl.where(other < expert, (counts + TILE - 1) // TILE, 0), 0)
    step = tl.arange(0, CHUNK)
    if expert == E:
        tl.store(DISTINCT, tl.sum((counts > 0).to(tl.int32), 0))
        for begin in range(first * TILE, blocks * TILE, CHUNK):
            tl.store(PAIRS + begin + step, total, mask=begin + step < blocks * TILE)
        for begin in range(first, blocks, CHUNK):
            tl.store(EXPERTS + begin + step, -1, mask=begin + step < blocks)
    else:
        mine = tl.sum(tl.where(other == expert, counts, 0), 0)
        needed = (mine + TILE - 1) // TILE
        row = first * TILE
        for begin in range(0, total, CHUNK):
            at = begin + step
            chosen = (tl.load(ROUTES + at, mask=at < total, other=-1) == expert).to(tl.int32)
            tl.store(PAIRS + row + tl.cumsum(chosen, 0) - 1, at, mask=chosen == 1)
            row += tl.sum(chosen, 0)
        padding = tl.arange(0, TILE)
        tl.store(PAIRS + row + padding, total, mask=row + padding < (first + needed) * TILE)
        for begin in range(0, needed, CHUNK):
            tl.store(EXPERTS + first + begin + step, expert, mask=begin + step < needed)


@triton.jit(do_not_specialize=["E"])
def combine(Z, ROUTES, WEIGHTS, Y, E, H: tl.constexpr, SLOTS: tl.constexpr, BLOCK_N: tl.constexpr):
    """Z [T k, H], ROUTES and WEIGHTS [T, k] -> Y [T, H]. A route to an expert that is none makes its token NaN."""
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    y = tl.zeros([BLOCK_N], tl.float32)
    for slot in range(SLOTS):
        pair = token * SLOTS + slot
        expert = tl.load(ROUTES + pair)
        weight = widen(tl.load(WEIGHTS + pair))
        weight = tl.where((expert >= 0) & (expert < E), weight, float("nan"))
        y += weight * widen(tl.load(Z + pair * H + n, mask=n < H, other=0.0))
    tl.store(Y + token * H + n, narrow(y, Y.dtype.element_ty), mask=n < H)

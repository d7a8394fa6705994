"""Grouped FP8 products over the blocks of a routing layout; weights e4m3 in blocks of 128 x 128.

    gate_up   h[r] = silu(Wg x[t]) * (Wu x[t])     row r of a block, its pair p = pairs[r], token t = p // k, expert's W
    down      z[p] = Wd h[r]                       one row a pair, rounded once

Two ways to multiply: W8A8, where x and h are e4m3 with one scale per row and group of 128 (gate_up quantises h itself,
from fp32), and W8A16, where they are BF16. Either way a product over 128 of K is scaled in fp32 and added to an fp32
sum: weights are not rounded again, and Hopper's 14-bit sums of e4m3 never run longer than 128.

The weight is the left factor and the tokens are the right one: D[n, t] = W[n, k] x[t, k]. Tensor cores take 64 rows on
the left and any multiple of 8 on the right, and with a row or two per expert it is tokens that are few: 16 of them fill
a tile here that would have to be 64 the other way round. With many tokens nothing is lost, the tile is wider.

A program makes one tile of one block's outputs; gate_up makes the same rows of gate and up, so that h needs no second
pass. Sizes of the model are compile-time, so that masks vanish where they are multiples of the tile. Scales are asked
for a step ahead: they do not go through the pipeline that fetches tiles.

Left out: TMA (token rows are gathered); split K (with 4 programs an expert, an H200 is full from 33 experts on, that
is from 4 tokens on); weights in other blocks.
"""

from __future__ import annotations

import triton
import triton.language as tl

from qconvert_kernels.numerics import dot, narrow, to_e4m3, widen

GROUP = tl.constexpr(128)  # of K: one scale, one product


@triton.jit
def multiply(weight, x, A8: tl.constexpr):
    """Codes [N, 128] times x [128, T], fp32; BF16 holds every e4m3 number exactly."""
    if A8:
        return dot(weight, x)
    else:
        return dot(weight.to(x.dtype), x)


@triton.jit
def load_row_scales(at, real, A8: tl.constexpr):
    """Scales of a group of each row, [T]; BF16 has none, where whatever is returned is not used."""
    if A8:
        return tl.load(at, mask=real, other=0.0)
    else:
        return 0.0


@triton.jit
def scale_of(weight_scale, row_scale, A8: tl.constexpr):
    """What a product of codes is to be multiplied with."""
    if A8:
        return (weight_scale * row_scale)[None, :]
    else:
        return weight_scale


@triton.jit
def silu_mul(gate, up):
    """In fp32; where e^-gate overflows to infinity the quotient is right: -0."""
    return tl.div_rn(gate, 1.0 + tl.exp(-gate)) * up


@triton.jit
def quantize_rows(h):
    """h fp32 [128, T] to codes e4m3 and scales [T], one group a column, as `quantize_activations` does."""
    scale = tl.div_rn(tl.max(tl.abs(h), 0), 448.0)
    scale = tl.where(scale == 0.0, 1.0, scale)
    return to_e4m3(tl.div_rn(h, tl.broadcast_to(scale[None, :], h.shape))), scale


@triton.jit(do_not_specialize=["total", "slots", "stride_scale_m", "stride_scale_k"])
def gate_up(
    X, X_SCALES, W, SCALES, PAIRS, EXPERTS, HIDDEN, H_SCALES, total, slots, stride_scale_m, stride_scale_k,
    H: tl.constexpr, INNER: tl.constexpr, A8: tl.constexpr, TILE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """X [T, H], its scales [T, H/128] strided; W [E, 2I, H], SCALES [E, 2, I/128, H/128]; HIDDEN [rows, I]."""
    GROUPS: tl.constexpr = (H + GROUP - 1) // GROUP
    GROUPS_OUT: tl.constexpr = (INNER + GROUP - 1) // GROUP
    TILES: tl.constexpr = (INNER + BLOCK_N - 1) // BLOCK_N
    tl.static_assert(BLOCK_N == GROUP or (not A8 and GROUP % BLOCK_N == 0), "the rows of a program share their scales")
    block = tl.program_id(0) // TILES
    first = tl.program_id(0) % TILES * BLOCK_N
    expert = tl.load(EXPERTS + block).to(tl.int64)
    if expert < 0:
        return
    row = (block * TILE + tl.arange(0, TILE)).to(tl.int64)
    pair = tl.load(PAIRS + row)  # [TILE]
    real = pair < total
    token = (pair // slots).to(tl.int64)
    n, k = first + tl.arange(0, BLOCK_N), tl.arange(0, GROUP)
    gate_at = W + expert * (2 * INNER * H) + n[:, None] * H + k[None, :]  # [BLOCK_N, 128]
    up_at = gate_at + INNER * H
    gate_scales = SCALES + expert * (2 * GROUPS_OUT * GROUPS) + first // GROUP * GROUPS
    up_scales = gate_scales + GROUPS_OUT * GROUPS
    x_at = X + token[None, :] * H + k[:, None]  # [128, TILE]
    x_scales = X_SCALES + token * stride_scale_m  # [TILE]
    gate = tl.zeros([BLOCK_N, TILE], tl.float32)
    up = tl.zeros([BLOCK_N, TILE], tl.float32)
    gate_scale, up_scale = widen(tl.load(gate_scales)), widen(tl.load(up_scales))
    x_scale = load_row_scales(x_scales, real, A8)
    for group in range(GROUPS):
        coming = tl.minimum(group + 1, GROUPS - 1)
        next_gate, next_up = tl.load(gate_scales + coming), tl.load(up_scales + coming)
        next_x = load_row_scales(x_scales + coming * stride_scale_k, real, A8)
        inside = k < H - group * GROUP
        x = tl.load(x_at + group * GROUP, mask=inside[:, None] & real[None, :], other=0.0)
        gate_codes = tl.load(gate_at + group * GROUP, mask=(n < INNER)[:, None] & inside[None, :], other=0.0)
        up_codes = tl.load(up_at + group * GROUP, mask=(n < INNER)[:, None] & inside[None, :], other=0.0)
        gate += multiply(gate_codes, x, A8) * scale_of(gate_scale, x_scale, A8)
        up += multiply(up_codes, x, A8) * scale_of(up_scale, x_scale, A8)
        gate_scale, up_scale, x_scale = widen(next_gate), widen(next_up), next_x
    h = silu_mul(gate, up)  # [BLOCK_N, TILE]
    h_at = HIDDEN + row[None, :] * INNER + n[:, None]
    if A8:
        codes, scale = quantize_rows(h)
        tl.store(h_at, codes, mask=(n < INNER)[:, None])
        tl.store(H_SCALES + row * GROUPS_OUT + first // GROUP, scale)
    else:
        tl.store(h_at, narrow(h, HIDDEN.dtype.element_ty), mask=(n < INNER)[:, None])


@triton.jit(do_not_specialize=["total"])
def down(
    HIDDEN, H_SCALES, W, SCALES, PAIRS, EXPERTS, Z, total,
    H: tl.constexpr, INNER: tl.constexpr, A8: tl.constexpr, TILE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """HIDDEN [rows, I], its scales [rows, I/128]; W [E, H, I], SCALES [E, H/128, I/128]; Z [P, H]."""
    GROUPS: tl.constexpr = (INNER + GROUP - 1) // GROUP
    GROUPS_OUT: tl.constexpr = (H + GROUP - 1) // GROUP
    TILES: tl.constexpr = (H + BLOCK_N - 1) // BLOCK_N
    tl.static_assert(GROUP % BLOCK_N == 0, "the rows of a program share their scales")
    block = tl.program_id(0) // TILES
    first = tl.program_id(0) % TILES * BLOCK_N
    expert = tl.load(EXPERTS + block).to(tl.int64)
    if expert < 0:
        return
    row = (block * TILE + tl.arange(0, TILE)).to(tl.int64)
    pair = tl.load(PAIRS + row)  # [TILE]
    real = pair < total
    n, k = first + tl.arange(0, BLOCK_N), tl.arange(0, GROUP)
    w_at = W + expert * (H * INNER) + n[:, None] * INNER + k[None, :]  # [BLOCK_N, 128]
    scales = SCALES + expert * (GROUPS_OUT * GROUPS) + first // GROUP * GROUPS
    h_at = HIDDEN + row[None, :] * INNER + k[:, None]  # [128, TILE]
    h_scales = H_SCALES + row * GROUPS  # [TILE]
    z = tl.zeros([BLOCK_N, TILE], tl.float32)
    scale = widen(tl.load(scales))
    h_scale = load_row_scales(h_scales, real, A8)
    for group in range(GROUPS):
        coming = tl.minimum(group + 1, GROUPS - 1)
        next_scale, next_h = tl.load(scales + coming), load_row_scales(h_scales + coming, real, A8)
        inside = k < INNER - group * GROUP
        h = tl.load(h_at + group * GROUP, mask=inside[:, None] & real[None, :], other=0.0)
        codes = tl.load(w_at + group * GROUP, mask=(n < H)[:, None] & inside[None, :], other=0.0)
        z += multiply(codes, h, A8) * scale_of(scale, h_scale, A8)
        scale, h_scale = widen(next_scale), next_h
    z_at = Z + pair[None, :].to(tl.int64) * H + n[:, None]
    tl.store(z_at, narrow(z, Z.dtype.element_ty), mask=(n < H)[:, None] & real[None, :])

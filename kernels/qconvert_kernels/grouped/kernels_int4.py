"""Grouped INT4 products: `kernels_fp8` with BF16 activations and weights in the order of `int4_gemm.packing`.

Weights are unpacked in registers, from where the tensor core reads its left factor. Codes minus zeros are multiplied as
they are, exactly; the fp32 sum of a group of 32, 64 or 128 is then scaled, which is cheaper than scaling weights as
long as tokens are fewer than the group, and rounds nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

from qconvert_kernels.grouped.kernels_fp8 import silu_mul
from qconvert_kernels.int4_gemm.few_tokens import unpack
from qconvert_kernels.numerics import dot, narrow, widen

BLOCK = tl.constexpr(128)  # numbers of a row in a tile
WORDS = tl.constexpr(32)  # and the words they fill
ROWS = tl.constexpr(64)  # rows of a tile


@triton.jit
def load_parts(at, real, left):
    """128 columns of the rows [32, T] x 4; `left` of them exist, rows that are padding are zeros."""
    k = tl.arange(0, 32)
    x0 = tl.load(at, mask=(k < left)[:, None] & real[None, :], other=0.0)
    x1 = tl.load(at + 32, mask=(k + 32 < left)[:, None] & real[None, :], other=0.0)
    x2 = tl.load(at + 64, mask=(k + 64 < left)[:, None] & real[None, :], other=0.0)
    x3 = tl.load(at + 96, mask=(k + 96 < left)[:, None] & real[None, :], other=0.0)
    return x0, x1, x2, x3


@triton.jit
def load_scales(at, step, STRIDE: tl.constexpr, GROUP: tl.constexpr):
    """Scales of the 1, 2 or 4 groups of these 128 of K, each [N]. STRIDE: from group to group."""
    at += step * (BLOCK // GROUP) * STRIDE
    if GROUP == 128:
        return (tl.load(at),)
    elif GROUP == 64:
        return tl.load(at), tl.load(at + STRIDE)
    else:
        return tl.load(at), tl.load(at + STRIDE), tl.load(at + 2 * STRIDE), tl.load(at + 3 * STRIDE)


@triton.jit
def multiply_step(
    total, words, x, scales, offsets_at, step, STRIDE: tl.constexpr, GROUP: tl.constexpr, ASYMMETRIC: tl.constexpr
):
    """total [N, T] plus words int16 [N, 32] times x 4 x [32, T], 128 of K."""
    part_sum = tl.zeros_like(total)
    minus_offset = narrow(tl.full([words.shape[0], 1], -136.0, tl.float32), tl.bfloat16)
    for part in tl.static_range(4):
        if ASYMMETRIC and part * 32 % GROUP == 0:
            offset = tl.load(offsets_at + (step * BLOCK + part * 32) // GROUP * STRIDE)
            minus_offset = narrow(-widen(offset), tl.bfloat16)[:, None]
        part_sum = dot(unpack(words, minus_offset, part), x[part], part_sum)
        if (part + 1) * 32 % GROUP == 0:
            total += part_sum * widen(scales[part * 32 // GROUP])[:, None]
            part_sum = tl.zeros_like(total)
    return total


@triton.jit(do_not_specialize=["total", "slots"])
def gate_up(
    X, W, SCALES, OFFSETS, PAIRS, EXPERTS, HIDDEN, total, slots,
    H: tl.constexpr, INNER: tl.constexpr, GROUP: tl.constexpr, ASYMMETRIC: tl.constexpr,
    TILE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """X bf16 [T, H]; W [E, 2, I/64, H/128, 64, 32], SCALES and OFFSETS [E, 2, H/g, I]; HIDDEN bf16 [rows, I]."""
    STEPS: tl.constexpr = (H + BLOCK - 1) // BLOCK
    FILLED: tl.constexpr = (INNER + ROWS - 1) // ROWS * ROWS
    WEIGHT: tl.constexpr = FILLED * STEPS * WORDS
    SCALED: tl.constexpr = STEPS * BLOCK // GROUP * FILLED
    TILES: tl.constexpr = (INNER + BLOCK_N - 1) // BLOCK_N
    block = tl.program_id(0) // TILES
    expert = tl.load(EXPERTS + block).to(tl.int64)
    if expert < 0:
        return
    row = (block * TILE + tl.arange(0, TILE)).to(tl.int64)
    pair = tl.load(PAIRS + row)  # [TILE]
    real = pair < total
    token = (pair // slots).to(tl.int64)
    n = tl.program_id(0) % TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    n_read = tl.minimum(n, FILLED - 1)  # 128 rows a program may reach past the filling
    tile_at = W + expert * (2 * WEIGHT) + n_read // ROWS * (STEPS * ROWS * WORDS) + n_read % ROWS * WORDS
    gate_at = tile_at[:, None] + tl.arange(0, WORDS)[None, :]  # [BLOCK_N, 32]
    scales_at = SCALES + expert * (2 * SCALED) + n_read
    offsets_at = OFFSETS + expert * (2 * SCALED) + n_read
    x_at = X + token[None, :] * H + tl.arange(0, 32)[:, None]  # [32, TILE]
    gate = tl.zeros([BLOCK_N, TILE], tl.float32)
    up = tl.zeros([BLOCK_N, TILE], tl.float32)
    gate_scales = load_scales(scales_at, 0, FILLED, GROUP)
    up_scales = load_scales(scales_at + SCALED, 0, FILLED, GROUP)
    for step in range(STEPS):
        coming = tl.minimum(step + 1, STEPS - 1)
        next_gate = load_scales(scales_at, coming, FILLED, GROUP)
        next_up = load_scales(scales_at + SCALED, coming, FILLED, GROUP)
        x = load_parts(x_at + step * BLOCK, real, H - step * BLOCK)
        gate_words = tl.load(gate_at + step * (ROWS * WORDS))
        up_words = tl.load(gate_at + WEIGHT + step * (ROWS * WORDS))
        gate = multiply_step(gate, gate_words, x, gate_scales, offsets_at, step, FILLED, GROUP, ASYMMETRIC)
        up = multiply_step(up, up_words, x, up_scales, offsets_at + SCALED, step, FILLED, GROUP, ASYMMETRIC)
        gate_scales, up_scales = next_gate, next_up
    h_at = HIDDEN + row[None, :] * INNER + n[:, None]
    tl.store(h_at, narrow(silu_mul(gate, up), HIDDEN.dtype.element_ty), mask=(n < INNER)[:, None])


@triton.jit(do_not_specialize=["total"])
def down(
    HIDDEN, W, SCALES, OFFSETS, PAIRS, EXPERTS, Z, total,
    H: tl.constexpr, INNER: tl.constexpr, GROUP: tl.constexpr, ASYMMETRIC: tl.constexpr,
    TILE: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """HIDDEN bf16 [rows, I]; W [E, H/64, I/128, 64, 32], SCALES and OFFSETS [E, I/g, H]; Z [P, H]."""
    STEPS: tl.constexpr = (INNER + BLOCK - 1) // BLOCK
    FILLED: tl.constexpr = (H + ROWS - 1) // ROWS * ROWS
    TILES: tl.constexpr = (H + BLOCK_N - 1) // BLOCK_N
    block = tl.program_id(0) // TILES
    expert = tl.load(EXPERTS + block).to(tl.int64)
    if expert < 0:
        return
    row = (block * TILE + tl.arange(0, TILE)).to(tl.int64)
    pair = tl.load(PAIRS + row)  # [TILE]
    real = pair < total
    n = tl.program_id(0) % TILES * BLOCK_N + tl.arange(0, BLOCK_N)
    n_read = tl.minimum(n, FILLED - 1)
    tile_at = W + expert * (FILLED * STEPS * WORDS) + n_read // ROWS * (STEPS * ROWS * WORDS) + n_read % ROWS * WORDS
    w_at = tile_at[:, None] + tl.arange(0, WORDS)[None, :]  # [BLOCK_N, 32]
    scales_at = SCALES + expert * (STEPS * BLOCK // GROUP * FILLED) + n_read
    offsets_at = OFFSETS + expert * (STEPS * BLOCK // GROUP * FILLED) + n_read
    h_at = HIDDEN + row[None, :] * INNER + tl.arange(0, 32)[:, None]  # [32, TILE]
    z = tl.zeros([BLOCK_N, TILE], tl.float32)
    scales = load_scales(scales_at, 0, FILLED, GROUP)
    for step in range(STEPS):
        next_scales = load_scales(scales_at, tl.minimum(step + 1, STEPS - 1), FILLED, GROUP)
        h = load_parts(h_at + step * BLOCK, real, INNER - step * BLOCK)
        words = tl.load(w_at + step * (ROWS * WORDS))
        z = multiply_step(z, words, h, scales, offsets_at, step, FILLED, GROUP, ASYMMETRIC)
        scales = next_scales
    z_at = Z + pair[None, :].to(tl.int64) * H + n[:, None]
    tl.store(z_at, narrow(z, Z.dtype.element_ty), mask=(n < H)[:, None] & real[None, :])

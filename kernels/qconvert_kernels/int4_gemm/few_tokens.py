"""INT4 product with bf16 activations: y^T = W x^T, weights unpacked in registers on the tensor core's M side.

The layout is that of `packing`. K is cut into SPLITS ranges as in `fp8_gemm.few_tokens`.
"""

import triton
import triton.language as tl

from qconvert_kernels.numerics import INTERPRETING, dot, narrow, widen


def _unpack_assembly(shift: int) -> tl.constexpr:
    """Two words a register: shift, then (word & 0xF) | 0x4300, which is bf16 136 + code; minus the offset, exact."""
    return tl.constexpr(
        "{ .reg .b32 t, one;"
        f" shr.b32 t, $1, {shift};"
        " lop3.b32 t, t, 0x000F000F, 0x43004300, 0xEA;"
        " mov.b32 one, 0x3F803F80;"
        " fma.rn.bf16x2 $0, t, one, $2; }"
    )


UNPACK_0, UNPACK_4, UNPACK_8, UNPACK_12 = (_unpack_assembly(shift) for shift in (0, 4, 8, 12))


@triton.jit
def unpack(words, minus_offset, PART: tl.constexpr):
    """Numbers 32 * PART .. 32 * PART + 31 of the rows' 128: words int16 [rows, 32] -> code - zero, bf16 [rows, 32]."""
    if INTERPRETING:
        code = ((words.to(tl.int32) >> (4 * PART)) & 15).to(tl.float32)
        return narrow(code + 128.0 + widen(minus_offset), tl.bfloat16)
    else:
        minus_offset = tl.broadcast_to(minus_offset, words.shape)
        low: tl.constexpr = UNPACK_0 if PART == 0 else UNPACK_4
        high: tl.constexpr = UNPACK_8 if PART == 2 else UNPACK_12
        assembly: tl.constexpr = low if PART < 2 else high
        return tl.inline_asm_elementwise(
            assembly, "=r,r,r", [words, minus_offset], dtype=tl.bfloat16, is_pure=True, pack=2
        )


@triton.jit
def _of_step(at, step, stride_group, GROUP: tl.constexpr):
    """What the 1, 2 or 4 groups of a step of 128 have, scales or offsets, each [rows]."""
    at += step * (128 // GROUP) * stride_group
    if GROUP == 128:
        return (tl.load(at),)
    elif GROUP == 64:
        return tl.load(at), tl.load(at + stride_group)
    else:
        return tl.load(at), tl.load(at + stride_group), tl.load(at + 2 * stride_group), tl.load(at + 3 * stride_group)


@triton.jit(do_not_specialize=["M", "stride_split"])
def product(
    X, WORDS, SCALES, OFFSETS, Y, M, N, K, stride_x, stride_group, stride_split,
    GROUP: tl.constexpr, ASYMMETRIC: tl.constexpr, SPLITS: tl.constexpr, EVEN_K: tl.constexpr,
    BLOCK_TOKENS: tl.constexpr, BLOCK_WEIGHTS: tl.constexpr, BLOCK: tl.constexpr = 128,
):  # fmt: skip
    """Program (i, j, s): BLOCK_WEIGHTS outputs of BLOCK_TOKENS tokens over range s of K.

    With SPLITS > 1, Y is [SPLITS, M, N] in fp32. SCALES and OFFSETS have stride_group >= N filled up to 64.
    """
    n = tl.program_id(0) * BLOCK_WEIGHTS + tl.arange(0, BLOCK_WEIGHTS)
    n_read = tl.minimum(n, stride_group - 1)  # 128 weights a program may reach past the filling
    m = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    k = tl.arange(0, 32)
    x_at = X + tl.minimum(m, M - 1).to(tl.int64)[:, None] * stride_x + k[None, :]
    steps = tl.cdiv(K, BLOCK)
    tile = (n_read // 64).to(tl.int64) * steps * (64 * 32) + n_read % 64 * 32
    words_at = WORDS + tile[:, None] + k[None, :]
    first = tl.program_id(2) * tl.cdiv(steps, SPLITS)
    last = tl.minimum(first + tl.cdiv(steps, SPLITS), steps)
    total = tl.zeros((BLOCK_WEIGHTS, BLOCK_TOKENS), tl.float32)
    # Scales are asked for one step ahead, as in `fp8_gemm.few_tokens`. Offsets are not: carried from step to step they
    # keep the compiler from unpacking where the tensor core reads, and every weight goes through shared memory.
    scales = _of_step(SCALES + n_read, tl.minimum(first, steps - 1), stride_group, GROUP)
    for step in range(first, last):
        next_scales = _of_step(SCALES + n_read, tl.minimum(step + 1, steps - 1), stride_group, GROUP)
        if ASYMMETRIC:
            offsets = _of_step(OFFSETS + n_read, step, stride_group, GROUP)
        words = tl.load(words_at + step * (64 * 32))
        minus_offset = narrow(tl.full((BLOCK_WEIGHTS, 1), -136.0, tl.float32), tl.bfloat16)
        part_sum = tl.zeros((BLOCK_WEIGHTS, BLOCK_TOKENS), tl.float32)
        for part in tl.static_range(4):
            if ASYMMETRIC and part * 32 % GROUP == 0:
                minus_offset = narrow(-widen(offsets[part * 32 // GROUP]), tl.bfloat16)[:, None]
            if EVEN_K:
                x = tl.load(x_at + (step * BLOCK + part * 32))
            else:
                x = tl.load(x_at + (step * BLOCK + part * 32), step * BLOCK + part * 32 + k[None, :] < K, other=0.0)
            part_sum = dot(unpack(words, minus_offset, part), x.T, part_sum)
            if (part + 1) * 32 % GROUP == 0:
                total += part_sum * widen(scales[part * 32 // GROUP])[:, None]
                part_sum = tl.zeros((BLOCK_WEIGHTS, BLOCK_TOKENS), tl.float32)
        scales = next_scales
    at = m.to(tl.int64)[None, :] * N + n[:, None]
    at += tl.program_id(2).to(tl.int64) * stride_split
    tl.store(Y + at, narrow(total, Y.dtype.element_ty), (n < N)[:, None] & (m < M)[None, :])

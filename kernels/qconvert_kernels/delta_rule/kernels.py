"""The gated delta rule in Triton: token by token, and in chunks of C tokens, one program per head and part of it.

With G_i = g_1 + ... + g_i inside a chunk and D_ij = e^(G_i - G_j) for i >= j, else 0:

    A = strictly lower part of (b K) K^T * D            what token i's correction owes to the earlier ones of its chunk
    U = (I + A)^-1 (b V),   W = (I + A)^-1 (b K e^G)    `prepare`, all chunks at once
    N = U - W S                                         the corrections, given the state S before the chunk
    O = (Q e^G) S + (Q K^T * D) N
    S <- e^(G_C) S + (K e^(G_C - G))^T N                `scan`, chunk after chunk; S stays in registers

(I + A)^-1 row after row, r_i = e_i - sum_{j<i} A_ij r_j: its powers would be quicker and are lost in cancellation
where keys repeat. Exponents are masked before exp: above the diagonal they are positive and would overflow. Tokens
past the end have g = b = 0 and k = v = 0, which leaves the state as it is. D is as exact as G_i - G_j: sums of a
chunk's decays, which lose |G| 2^-24, as in every chunked form.
"""

import triton
import triton.language as tl

from qconvert_kernels.numerics import narrow, widen

L2_EPS = tl.constexpr(1e-6)


@triton.jit
def dot32(a, b):
    """fp32 times fp32 on the tensor core: three TF32 products."""
    return tl.dot(a, b, input_precision="tf32x3")


@triton.jit
def inverse_norm(X, at, mask):
    """1 / sqrt(sum of x^2 + 1e-6) of rows of X [n, dk], or of one [dk]; [n, 1] or [1]"""
    x = widen(tl.load(X + at, mask=mask, other=0.0))
    axis: tl.constexpr = len(x.shape) - 1
    return tl.rsqrt(tl.sum(x * x, axis, keep_dims=True) + L2_EPS)


@triton.jit(do_not_specialize=["tokens"])
def recurrent(
    Q, K, V, DECAY, BETA, STATE, Y, END, tokens,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Program (b h, j): columns j of the state of one head, all tokens. Q, K [B, T, Hk, dk], V, Y [B, T, Hv, dv]."""
    head, batch = tl.program_id(0) % HEADS, (tl.program_id(0) // HEADS).to(tl.int64)
    i, j = tl.arange(0, BLOCK_K), tl.program_id(1) * BLOCK_V + tl.arange(0, BLOCK_V)
    inside = (i < DK)[:, None] & (j < DV)[None, :]
    state_at = tl.program_id(0).to(tl.int64) * (DK * DV) + i[:, None] * DV + j[None, :]
    state = tl.load(STATE + state_at, mask=inside, other=0.0)  # [dk, BLOCK_V]
    scale: tl.constexpr = DK**-0.5
    for t in range(tokens):
        row = (batch * tokens + t) * HEADS + head
        key_row = (batch * tokens + t) * KEY_HEADS + head // (HEADS // KEY_HEADS)
        key_at = key_row * DK + i
        q = widen(tl.load(Q + key_at, mask=i < DK, other=0.0)) * inverse_norm(Q, key_at, i < DK) * scale  # [dk]
        k = widen(tl.load(K + key_at, mask=i < DK, other=0.0)) * inverse_norm(K, key_at, i < DK)
        v = widen(tl.load(V + row * DV + j, mask=j < DV, other=0.0))  # [BLOCK_V]
        state *= tl.exp(tl.load(DECAY + row))
        correction = tl.load(BETA + row) * (v - tl.sum(state * k[:, None], 0))
        state += k[:, None] * correction[None, :]
        y = tl.sum(state * q[:, None], 0)
        tl.store(Y + row * DV + j, narrow(y, Y.dtype.element_ty), mask=j < DV)
    tl.store(END + state_at, state, mask=inside)


@triton.jit
def invert(owed, beta, C: tl.constexpr):
    """(I + A)^-1 with column j times beta_j; A [C, C] strictly lower."""
    step = tl.arange(0, C)
    inverse = (step[:, None] == step[None, :]).to(tl.float32)
    for row in range(1, C):
        mine = tl.sum(tl.where((step == row)[:, None], owed, 0.0), 0)  # row of A: [C]
        found = tl.sum(mine[:, None] * inverse, 0)  # of rows above only: A is 0 from the diagonal on
        inverse -= tl.where((step == row)[:, None], found[None, :], 0.0)
    return inverse * beta[None, :]


@triton.jit(do_not_specialize=["tokens", "chunks"])
def prepare(
    Q, K, V, DECAY, BETA, UPDATES, REACH, GROWN, LEFT, READS, FADE, tokens, chunks,
    HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr,
    BLOCK_K: tl.constexpr, PART: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Program (c, b h): chunk c of a head to U [C, dv]; W, Q e^G, K e^(G_C - G) [C, dk]; Q K^T * D [C, C]; e^(G_C)."""
    head, batch = tl.program_id(1) % HEADS, (tl.program_id(1) // HEADS).to(tl.int64)
    step, i, whole = tl.arange(0, C), tl.arange(0, PART), tl.arange(0, BLOCK_K)
    token = tl.program_id(0) * C + step
    real = token < tokens
    row = (batch * tokens + token) * HEADS + head
    key_row = (batch * tokens + token) * KEY_HEADS + head // (HEADS // KEY_HEADS)
    key_at = key_row[:, None] * DK + i[None, :]
    out = tl.program_id(1).to(tl.int64) * chunks + tl.program_id(0)
    out_row = out * C + step
    out_at = out_row[:, None] * DK + i[None, :]
    beta = tl.load(BETA + row, mask=real, other=0.0)  # [C]
    decay = tl.load(DECAY + row, mask=real, other=0.0)
    total, last = tl.cumsum(decay, 0), tl.sum(decay, 0)  # G and G_C
    tl.store(FADE + out, tl.exp(last))
    lower = step[:, None] >= step[None, :]
    decay_to = tl.exp(tl.where(lower, total[:, None] - total[None, :], float("-inf")))  # D

    whole_at, whole_mask = key_row[:, None] * DK + whole[None, :], real[:, None] & (whole < DK)[None, :]
    k_norm, q_norm = inverse_norm(K, whole_at, whole_mask), inverse_norm(Q, whole_at, whole_mask) * DK**-0.5
    owed, reads = tl.zeros([C, C], tl.float32), tl.zeros([C, C], tl.float32)
    for first in range(0, DK, PART):  # in parts: TF32 three times over, a whole head does not fit into registers
        inside = real[:, None] & (first + i < DK)[None, :]
        k = widen(tl.load(K + key_at + first, mask=inside, other=0.0)) * k_norm  # [C, PART]
        q = widen(tl.load(Q + key_at + first, mask=inside, other=0.0)) * q_norm
        owed += dot32(k, tl.trans(k))
        reads += dot32(q, tl.trans(k))
        tl.store(LEFT + out_at + first, k * tl.exp(last - total)[:, None], mask=(first + i < DK)[None, :])
        tl.store(GROWN + out_at + first, q * tl.exp(total)[:, None], mask=(first + i < DK)[None, :])
    tl.store(READS + out_row[:, None] * C + step[None, :], reads * decay_to)
    owed = tl.where(step[:, None] > step[None, :], owed * decay_to * beta[:, None], 0.0)  # A
    inverse = invert(owed, beta, C)
    for first in range(0, DK, PART):
        inside = real[:, None] & (first + i < DK)[None, :]
        k = widen(tl.load(K + key_at + first, mask=inside, other=0.0)) * k_norm
        reach = dot32(inverse, k * tl.exp(total)[:, None])
        tl.store(REACH + out_at + first, reach, mask=(first + i < DK)[None, :])
    for first in range(0, DV, PART):
        inside = (first + i < DV)[None, :]
        v = widen(tl.load(V + row[:, None] * DV + first + i[None, :], mask=real[:, None] & inside, other=0.0))
        tl.store(UPDATES + out_row[:, None] * DV + first + i[None, :], dot32(inverse, v), mask=inside)


@triton.jit(do_not_specialize=["tokens", "chunks"])
def scan(
    STATE, UPDATES, REACH, GROWN, LEFT, READS, FADE, Y, END, tokens, chunks,
    HEADS: tl.constexpr, DK: tl.constexpr, DV: tl.constexpr,
    PART: tl.constexpr, PARTS: tl.constexpr, BLOCK_V: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """Program (j, b h): columns j of one head through all chunks."""
    head, batch = tl.program_id(1) % HEADS, (tl.program_id(1) // HEADS).to(tl.int64)
    step, i = tl.arange(0, C), tl.arange(0, PART)
    j = tl.program_id(0) * BLOCK_V + tl.arange(0, BLOCK_V)
    state_at = tl.program_id(1).to(tl.int64) * (DK * DV) + i[:, None] * DV + j[None, :]
    state = ()  # PARTS x [PART, BLOCK_V]; Triton knows no starred tuples
    for part in tl.static_range(PARTS):
        inside = (part * PART + i < DK)[:, None] & (j < DV)[None, :]
        state = state + (tl.load(STATE + state_at + part * PART * DV, mask=inside, other=0.0),)  # type: ignore[assignment] # noqa: RUF005
    for chunk in range(chunks):
        number = tl.program_id(1).to(tl.int64) * chunks + chunk
        row = number * C + step
        key_at = row[:, None] * DK + i[None, :]
        updates = tl.load(UPDATES + row[:, None] * DV + j[None, :], mask=(j < DV)[None, :], other=0.0)  # U
        answers, y = tl.zeros([C, BLOCK_V], tl.float32), tl.zeros([C, BLOCK_V], tl.float32)
        for part in tl.static_range(PARTS):
            key_inside = (part * PART + i < DK)[None, :]
            answers += dot32(tl.load(REACH + key_at + part * PART, mask=key_inside, other=0.0), state[part])  # W S
            y += dot32(tl.load(GROWN + key_at + part * PART, mask=key_inside, other=0.0), state[part])  # (Q e^G) S
        corrections = updates - answers  # N: [C, BLOCK_V]
        y += dot32(tl.load(READS + row[:, None] * C + step[None, :]), corrections)
        fade, new = tl.load(FADE + number), ()
        for part in tl.static_range(PARTS):
            row_inside = (part * PART + i < DK)[:, None]
            left_at = LEFT + row[None, :] * DK + part * PART + i[:, None]
            left = tl.load(left_at, mask=row_inside, other=0.0)  # [PART, C]
            new = new + (state[part] * fade + dot32(left, corrections),)  # type: ignore[assignment] # noqa: RUF005
        state = new
        token = chunk * C + step
        y_at = ((batch * tokens + token) * HEADS + head)[:, None] * DV + j[None, :]
        tl.store(Y + y_at, narrow(y, Y.dtype.element_ty), mask=(token < tokens)[:, None] & (j < DV)[None, :])
    for part in tl.static_range(PARTS):
        inside = (part * PART + i < DK)[:, None] & (j < DV)[None, :]
        tl.store(END + state_at + part * PART * DV, state[part], mask=inside)

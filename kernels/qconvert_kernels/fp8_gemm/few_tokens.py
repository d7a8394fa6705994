"""Block-FP8 product for few tokens, and for bf16 activations at any number of them: y^T = W x^T.

The tensor core's M side takes 64 rows or more, its N side 16 or more. Weights fill the M side, so that sixteen tokens
need no padding; for bf16 activations the weights are widened in registers, from where that side may be read. K is cut
into SPLITS ranges where N alone gives too few programs; their fp32 sums are added in a fixed order by `split_k`.
"""

import triton
import triton.language as tl

from qconvert_kernels.numerics import dot, narrow, widen


@triton.jit(do_not_specialize=["M", "stride_xs_k", "stride_split"])
def product(
    X, X_SCALES, W, W_SCALES, Y, M, N, K,
    stride_x, stride_xs_m, stride_xs_k, stride_w, stride_ws, stride_split,
    SPLITS: tl.constexpr, EVEN_K: tl.constexpr, BLOCK_TOKENS: tl.constexpr, BLOCK_WEIGHTS: tl.constexpr,
    BLOCK: tl.constexpr = 128,
):  # fmt: skip
    """Program (i, j, s): BLOCK_WEIGHTS outputs of BLOCK_TOKENS tokens over range s of K.

    BLOCK_WEIGHTS divides 128, so each step of 128 along K has one weight scale. With SPLITS > 1, Y is [SPLITS, M, N] in
    fp32.
    """
    QUANTIZED_X: tl.constexpr = X.dtype.element_ty == tl.float8e4nv
    n_first = tl.program_id(0) * BLOCK_WEIGHTS
    n = n_first + tl.arange(0, BLOCK_WEIGHTS)
    m = tl.program_id(1) * BLOCK_TOKENS + tl.arange(0, BLOCK_TOKENS)
    k = tl.arange(0, BLOCK)
    # Rows past the end read the last row again: no masks in the loop, and what they give is not stored.
    w_row = tl.minimum(n, N - 1).to(tl.int64)
    x_row = tl.minimum(m, M - 1).to(tl.int64)
    w_at = W + w_row[:, None] * stride_w + k[None, :]
    x_at = X + x_row[:, None] * stride_x + k[None, :]
    xs_at = X_SCALES + x_row * stride_xs_m
    ws_at = W_SCALES + (n_first // BLOCK).to(tl.int64) * stride_ws

    steps = tl.cdiv(K, BLOCK)
    first = tl.program_id(2) * tl.cdiv(steps, SPLITS)
    last = tl.minimum(first + tl.cdiv(steps, SPLITS), steps)
    total = tl.zeros((BLOCK_WEIGHTS, BLOCK_TOKENS), tl.float32)
    # Scales are asked for one step ahead: asked for in their own step, they would come after the product.
    scale = widen(tl.load(ws_at + tl.minimum(first, steps - 1)))
    if QUANTIZED_X:
        token_scale = tl.load(xs_at + tl.minimum(first, steps - 1) * stride_xs_k)
    for step in range(first, last):
        coming = tl.minimum(step + 1, steps - 1)
        next_scale = tl.load(ws_at + coming)
        if QUANTIZED_X:
            next_token_scale = tl.load(xs_at + coming * stride_xs_k)
        if EVEN_K:
            w = tl.load(w_at + step * BLOCK)
            x = tl.load(x_at + step * BLOCK)
        else:
            inside = (step * BLOCK + k < K)[None, :]
            w = tl.load(w_at + step * BLOCK, inside, other=0.0)
            x = tl.load(x_at + step * BLOCK, inside, other=0.0)
        if QUANTIZED_X:
            total += dot(w, x.T) * (token_scale * scale)[None, :]
            token_scale = next_token_scale
        else:
            total += dot(w.to(x.dtype), x.T) * scale
        scale = widen(next_scale)
    at = m.to(tl.int64)[None, :] * N + n[:, None]
    at += tl.program_id(2).to(tl.int64) * stride_split
    tl.store(Y + at, narrow(total, Y.dtype.element_ty), (n < N)[:, None] & (m < M)[None, :])

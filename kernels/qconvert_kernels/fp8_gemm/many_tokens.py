"""Block-FP8 product for many tokens with eight-bit activations: y = x W^T, persistent, through TMA.

One program a processor walks through the tiles of y; descriptors spare the address arithmetic, which halves the
registers a tile needs. Tiles of eight rows of blocks are taken together so that weights stay in the second-level cache.
The sum of each 128 of K leaves the tensor core, which keeps about 14 bits, and is scaled into an fp32 sum.
"""

import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from qconvert_kernels.numerics import dot, narrow, widen

__all__ = ["TensorDescriptor", "product"]


@triton.jit
def _tile(index, tiles_m, tiles_n, ROWS_TOGETHER: tl.constexpr = 8):
    """Tile number -> (row, column): columns within a band of ROWS_TOGETHER rows, column by column."""
    band = index // (ROWS_TOGETHER * tiles_n)
    rows = tl.minimum(tiles_m - band * ROWS_TOGETHER, ROWS_TOGETHER)
    within = index % (ROWS_TOGETHER * tiles_n)
    return band * ROWS_TOGETHER + within % rows, within // rows


@triton.jit(do_not_specialize=["M", "stride_xs_k"])
def product(
    X, X_SCALES, W, W_SCALES, Y, M, N, K, stride_xs_m, stride_xs_k, stride_ws,
    BLOCK_TOKENS: tl.constexpr, BLOCK_WEIGHTS: tl.constexpr, BLOCK: tl.constexpr = 128,
):  # fmt: skip
    """X, W, Y are descriptors with blocks [BLOCK_TOKENS, 128], [BLOCK_WEIGHTS, 128], [BLOCK_TOKENS, BLOCK_WEIGHTS].

    What lies past an edge is read as zero and not written. BLOCK_WEIGHTS divides 128.
    """
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_TOKENS), tl.cdiv(N, BLOCK_WEIGHTS)
    steps = tl.cdiv(K, BLOCK)
    for index in tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0), flatten=True):
        tile_m, tile_n = _tile(index, tiles_m, tiles_n)
        m_first, n_first = tile_m * BLOCK_TOKENS, tile_n * BLOCK_WEIGHTS
        m = tl.minimum(m_first + tl.arange(0, BLOCK_TOKENS), M - 1)
        xs_at = X_SCALES + m.to(tl.int64) * stride_xs_m
        ws_at = W_SCALES + (n_first // BLOCK).to(tl.int64) * stride_ws
        total = tl.zeros((BLOCK_TOKENS, BLOCK_WEIGHTS), tl.float32)
        # Scales are asked for one step ahead: asked for in their own step, they would come after the product.
        token_scale, scale = tl.load(xs_at), widen(tl.load(ws_at))
        for step in range(steps):
            coming = tl.minimum(step + 1, steps - 1)
            next_token_scale, next_scale = tl.load(xs_at + coming * stride_xs_k), tl.load(ws_at + coming)
            x = X.load([m_first, step * BLOCK])
            w = W.load([n_first, step * BLOCK])
            total += dot(x, w.T) * (token_scale * scale)[:, None]
            token_scale, scale = next_token_scale, widen(next_scale)
        Y.store([m_first, n_first], narrow(total, Y.dtype))

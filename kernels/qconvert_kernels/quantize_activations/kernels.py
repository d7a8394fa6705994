"""Activation quantization in Triton: one pass over memory, alone or behind the operation that made the activations."""

import triton
import triton.language as tl

from qconvert_kernels.numerics import narrow, to_e4m3, widen

GROUP = tl.constexpr(128)


@triton.jit
def _codes_and_scales(x):
    """x [rows, 128] fp32 -> codes e4m3, scales [rows]. Correctly rounded divisions: the codes equal those on a CPU."""
    scale = tl.div_rn(tl.max(tl.abs(x), 1), 448.0)
    scale = tl.where(scale == 0.0, 1.0, scale)
    return to_e4m3(tl.div_rn(x, tl.broadcast_to(scale[:, None], x.shape))), scale


@triton.jit(do_not_specialize=["M", "stride_scale_k"])
def quantize(
    X, UP, Y, CODES, SCALES, M, K, stride_x, stride_up, stride_scale_m, stride_scale_k,
    SILU_MUL: tl.constexpr, KEEP: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Program (i, j): ROWS tokens of group j. SILU_MUL: of silu(x) * up; KEEP: that product is stored to Y too."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    group = tl.program_id(1)
    column = group * GROUP + tl.arange(0, GROUP)
    inside = (row < M)[:, None] & (column < K)[None, :]
    x = widen(tl.load(X + row[:, None] * stride_x + column[None, :], inside, other=0.0))
    at = row[:, None] * K + column[None, :]
    if SILU_MUL:
        up = widen(tl.load(UP + row[:, None] * stride_up + column[None, :], inside, other=0.0))
        dtype: tl.constexpr = X.dtype.element_ty
        silu = widen(narrow(tl.div_rn(x, 1.0 + tl.exp(-x)), dtype))
        y = narrow(silu * up, dtype)
        if KEEP:
            tl.store(Y + at, y, inside)
        x = widen(y)
    codes, scale = _codes_and_scales(x)
    tl.store(CODES + at, codes, inside)
    tl.store(SCALES + row * stride_scale_m + group * stride_scale_k, scale, row < M)


@triton.jit(do_not_specialize=["stride_scale_k"])
def rms_norm_quantize(
    X, WEIGHT, Y, CODES, SCALES, K, stride_x, stride_scale_m, stride_scale_k, eps, GROUPS: tl.constexpr
):
    """Program i: token i, all of it at once as [GROUPS, 128] with GROUPS * 128 >= K."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, GROUPS)
    column = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = column < K
    x = widen(tl.load(X + row * stride_x + column, inside, other=0.0))
    weight = widen(tl.load(WEIGHT + column, inside, other=0.0))
    y = x * tl.rsqrt(tl.sum(tl.sum(x * x, 1), 0) / K + eps) * (1.0 + weight)
    y = narrow(y, X.dtype.element_ty)
    tl.store(Y + row * K + column, y, inside)
    codes, scale = _codes_and_scales(widen(y))
    tl.store(CODES + row * K + column, codes, inside)
    tl.store(SCALES + row * stride_scale_m + group * stride_scale_k, scale, group * GROUP < K)

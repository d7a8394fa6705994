"""Weight quantization in Triton: every number is read once and its code written once; and how far off codes are.

The codes and scales are those of the naive truth, bit for bit. So divisions are correctly rounded, integers are found
by adding a number whose steps are 1, and no product may be fused with an addition: of the pairs of an integer weight
and a range that the search can meet, 20 would round to another code. The launch says so (`enable_fp_fusion=False`),
and a test looks for fused operations in the compiled code.

A program holds 128 x 128 numbers (FP8), or as many groups as make PROGRAM numbers (INT4), in registers.
"""

import triton
import triton.language as tl

from qconvert_kernels.numerics import to_bf16, to_e4m3, widen

BLOCK = tl.constexpr(128)
PROGRAM = tl.constexpr(4096)
CODE_MAX = tl.constexpr(448.0)
SMALLEST_SCALE = tl.constexpr(2.0**-126)
# Scale types, as constants of a kernel.
BF16, FP32, POW2 = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
INTEGERS = tl.constexpr(1.5 * 2.0**23)  # added and subtracted, it leaves the nearest integer, ties to even
NAN = tl.constexpr(float("nan"))


@triton.jit
def _magnitude(x):
    """fp32 without sign as an integer; these are ordered as the numbers are, then infinity, then NaN."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def _stored(scale, SCALES: tl.constexpr):
    """fp32 to the nearest number of the type that scales are stored in, as fp32."""
    if SCALES == FP32:
        return scale
    elif SCALES == POW2:  # upwards: a mantissa that is not empty carries into the exponent
        return ((scale.to(tl.int32, bitcast=True) + 0x7FFFFF) & 0x7F800000).to(tl.float32, bitcast=True)
    else:
        return widen(to_bf16(scale))


@triton.jit
def _nearest(x):
    """The nearest integer, ties to even, of |x| up to 2^22."""
    return (x + INTEGERS) - INTEGERS


@triton.jit
def _nearest_int8(x):
    """The same as int8, of |x| up to 127: the integer stands in the lowest bits of the sum."""
    return (x + INTEGERS).to(tl.int32, bitcast=True).to(tl.int8)


@triton.jit
def _store_scale(pointer, scale, mask, SCALES: tl.constexpr):
    tl.store(pointer, scale if SCALES == FP32 else to_bf16(scale), mask)


@triton.jit(do_not_specialize=["N", "stride_scale"])
def fp8_block128(W, CODES, SCALE, N, K, stride_w, stride_scale, LIMIT: tl.constexpr, SCALES: tl.constexpr):
    """Program (i, j): block i of K, j of N; the other way round neighbours would lie far apart in memory."""
    row = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = (row < N)[:, None] & (column < K)[None, :]
    x = widen(tl.load(W + row[:, None] * stride_w + column[None, :], inside, other=0.0))
    largest = tl.max(tl.max(_magnitude(x), 1, keep_dims=True), 0, keep_dims=True)  # [1, 1]
    scale = tl.div_rn(largest.to(tl.float32, bitcast=True), tl.full([1, 1], CODE_MAX, tl.float32))
    scale = _stored(tl.maximum(scale, SMALLEST_SCALE), SCALES)
    scale = tl.where(largest == 0, 1.0, scale)
    codes = to_e4m3(tl.div_rn(x, tl.broadcast_to(scale, x.shape)))
    tl.store(CODES + row[:, None] * K + column[None, :], codes, inside)
    place = SCALE + tl.program_id(1).to(tl.int64) * stride_scale + tl.program_id(0) + tl.zeros([1, 1], tl.int32)
    _store_scale(place, tl.where(largest <= LIMIT, scale, NAN), None, SCALES)


@triton.jit
def _plain_rule(
    low, high, largest, ASYMMETRIC: tl.constexpr, OWN_BF16: tl.constexpr, SCALES: tl.constexpr, EPS: tl.constexpr
):
    """rtn: scale and zero point [groups]. `largest` is the magnitude, as bits."""
    span = high - low if ASYMMETRIC else largest.to(tl.float32, bitcast=True)
    if ASYMMETRIC and OWN_BF16:
        span = widen(to_bf16(span))
    scale = _stored(tl.div_rn(span, tl.full(span.shape, 15.0 if ASYMMETRIC else 7.5, tl.float32)), SCALES)
    scale = tl.where(scale == 0.0, EPS, scale)
    zero = tl.zeros_like(scale)
    if ASYMMETRIC:
        ratio = tl.div_rn(low, scale)
        if OWN_BF16:
            zero = widen(to_bf16(-8.0 - widen(to_bf16(ratio))))
        else:
            zero = -8.0 - ratio
        zero = tl.where(span == 0.0, 0.0, _nearest(tl.minimum(tl.maximum(zero, -8.0), 7.0)))
    return scale, zero


@triton.jit
def _search(
    x, low, high, FACTORS: tl.constexpr, SHORTEST: tl.constexpr, LONGEST: tl.constexpr, GRID: tl.constexpr,
    ASYMMETRIC: tl.constexpr, SCALES: tl.constexpr,
):  # fmt: skip
    """mse: scale and zero point [groups] of x [groups, group]. All sums are of integers below 2^24."""
    reach = high - low if ASYMMETRIC else tl.where(high > -low, -high, -low)
    divisor = tl.where(reach == 0.0, 1.0, reach)
    steps = _nearest(tl.div_rn(x, tl.broadcast_to(divisor[:, None], x.shape)) * GRID)
    zero = tl.zeros_like(reach)
    if ASYMMETRIC:
        zero = _nearest(-8.0 - tl.div_rn(low, divisor) * 15.0)
        zero = tl.where(reach == 0.0, 0.0, tl.minimum(tl.maximum(zero, -8.0), 7.0))
    least, most = (-8.0 - zero)[:, None], (7.0 - zero)[:, None]
    best = tl.full(reach.shape, -1.0, tl.float64)
    best_mixed, best_square = tl.zeros_like(reach), tl.full(reach.shape, 1.0, tl.float32)
    for trial in tl.static_range(len(FACTORS)):
        q = tl.minimum(tl.maximum(_nearest(steps * FACTORS[trial]), least), most)
        mixed, square = tl.sum(q * steps, 1), tl.maximum(tl.sum(q * q, 1), 1.0)
        gain = mixed.to(tl.float64) * mixed.to(tl.float64) / square.to(tl.float64)
        better = gain > best
        best = tl.where(better, gain, best)
        best_mixed, best_square = tl.where(better, mixed, best_mixed), tl.where(better, square, best_square)
    width: tl.constexpr = 15.0 if ASYMMETRIC else 8.0
    shortest, longest = tl.full(reach.shape, SHORTEST, tl.float64), tl.full(reach.shape, LONGEST, tl.float64)
    ratio = best_mixed.to(tl.float64) / best_square.to(tl.float64)
    covered = tl.minimum(tl.maximum(ratio * (width / GRID), shortest), longest)
    scale = covered * reach.to(tl.float64) / tl.full(reach.shape, width, tl.float64)
    size = tl.maximum(tl.abs(scale), tl.full(reach.shape, SMALLEST_SCALE, tl.float64))
    size = _stored(size.to(tl.float32), SCALES)
    return tl.where(reach == 0.0, 1.0, tl.where(scale < 0.0, -size, size)), zero


@triton.jit(do_not_specialize=["TOTAL", "G"])
def int4(
    W, CODES, SCALE, ZERO, TOTAL, G, K, stride_w,
    GROUP: tl.constexpr, LIMIT: tl.constexpr, FACTORS: tl.constexpr, SHORTEST: tl.constexpr, LONGEST: tl.constexpr,
    GRID: tl.constexpr, EPS: tl.constexpr,
    SEARCH: tl.constexpr, ASYMMETRIC: tl.constexpr, OWN_BF16: tl.constexpr, SCALES: tl.constexpr,
):  # fmt: skip
    """Program i: the next groups of the matrix, which has G in each row and TOTAL in all."""
    groups: tl.constexpr = PROGRAM // GROUP
    index = tl.program_id(0) * groups + tl.arange(0, groups)
    row = (index // G).to(tl.int64)
    column = (index % G)[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = (index < TOTAL)[:, None] & (column < K)
    x = widen(tl.load(W + row[:, None] * stride_w + column, inside, other=0.0))  # [groups, group]
    largest = tl.max(_magnitude(x), 1)
    low, high = tl.min(x, 1), tl.max(x, 1)
    if ASYMMETRIC:
        low, high = tl.minimum(low, 0.0), tl.maximum(high, 0.0)
    if SEARCH:
        scale, zero = _search(x, low, high, FACTORS, SHORTEST, LONGEST, GRID, ASYMMETRIC, SCALES)
    else:
        scale, zero = _plain_rule(low, high, largest, ASYMMETRIC, OWN_BF16, SCALES, EPS)
    codes = tl.div_rn(x, tl.broadcast_to(scale[:, None], x.shape)) + zero[:, None]
    codes = _nearest_int8(tl.minimum(tl.maximum(codes, -8.0), 7.0))
    tl.store(CODES + row[:, None] * K + column, codes, inside)
    _store_scale(SCALE + index, tl.where(largest <= LIMIT, scale, NAN), index < TOTAL, SCALES)
    if ASYMMETRIC:
        tl.store(ZERO + index, _nearest_int8(zero), index < TOTAL)


@triton.jit
def _halved(lanes, ROWS: tl.constexpr, LANES: tl.constexpr):
    """[ROWS, LANES] to [ROWS, LANES / 2]: one half added to the other."""
    return tl.sum(tl.reshape(lanes, [ROWS, 2, LANES // 2]), 1)


@triton.jit
def _row_sums(lanes, ROWS: tl.constexpr):
    """[ROWS, 128] to [ROWS], in the order that is part of the definition."""
    lanes = _halved(_halved(_halved(lanes, ROWS, 128), ROWS, 64), ROWS, 32)
    lanes = _halved(_halved(_halved(lanes, ROWS, 16), ROWS, 8), ROWS, 4)
    return tl.sum(lanes, 1)


@triton.jit(do_not_specialize=["N", "stride_scale"])
def squared_errors(
    W, CODES, SCALE, ZERO, SUMS, N, K, stride_w, stride_scale,
    SCALE_ROWS: tl.constexpr, GROUP: tl.constexpr, ASYMMETRIC: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Program i: ROWS rows, 128 columns at a time; a scale covers SCALE_ROWS x GROUP numbers."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    errors, squares = tl.zeros([ROWS, BLOCK], tl.float64), tl.zeros([ROWS, BLOCK], tl.float64)
    for start in range(0, K, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = (row < N)[:, None] & (column < K)[None, :]
        at = (row // SCALE_ROWS)[:, None] * stride_scale + (column // GROUP)[None, :]
        weight = widen(tl.load(W + row[:, None] * stride_w + column[None, :], inside, other=0.0)).to(tl.float64)
        decoded = widen(tl.load(CODES + row[:, None] * K + column[None, :], inside))
        if ASYMMETRIC:
            decoded -= tl.load(ZERO + at, inside, other=0).to(tl.float32)
        decoded *= widen(tl.load(SCALE + at, inside, other=0.0))
        error = tl.where(inside, decoded, 0.0).to(tl.float64) - weight
        errors += error * error
        squares += weight * weight
    tl.store(SUMS + row, _row_sums(errors, ROWS), row < N)
    tl.store(SUMS + N + row, _row_sums(squares, ROWS), row < N)

"""INT4 group by group: all of `schemes.int4` for one group while its numbers lie in the first-level cache.

Sums of the search are sums of integers in integers: exact in any order, so that a compiler may add many at a time.
Extremes are found on the bits of BF16, mapped to integers that are ordered as the numbers are.
"""

import numpy as np
import torch
from torch import Tensor

from qconvert.schemes.fused.jit import Array, Number, loop, step
from qconvert.schemes.int4 import Int4, rules
from qconvert.schemes.int4.number_format import SCALE_TYPES, unusable
from qconvert.schemes.scheme import QuantizedWeight, add_rows

f32, f64, i8, i16, i32, i64 = np.float32, np.float64, np.int8, np.int16, np.int32, np.int64
u16, u32 = np.uint16, np.uint32
LANES = 128  # of `scheme.squared_error`
# Added to a small number it leaves, in the lowest bits, the nearest integer, ties to even.
ROUND, ROUND_BITS = f32(1.5 * 2.0**23), i32(0x4B400000)
RULES = {"rtn": 0, "mse": 1, "imatrix": 2, "gptq": 2}


def quantize(scheme: Int4, weight: Tensor, importance: Tensor | None = None) -> QuantizedWeight:
    """BF16 weight [N, K] to numbers with BF16 or FP32 scales. Raises UnusableWeight."""
    rows, columns = weight.shape
    groups = -(-columns // scheme.group)
    stored = SCALE_TYPES[scheme.scale_type][1]
    codes = torch.empty(rows, columns, dtype=torch.int8)
    scales = torch.empty(rows, groups)
    zeros = torch.empty(rows, groups if scheme.asymmetric else 0, dtype=torch.int8)
    grid, width = (rules.GRID_ASYMMETRIC, 15.0) if scheme.asymmetric else (rules.GRID, 8.0)
    padded = scheme.padded(importance)
    weights = torch.zeros(0, scheme.group) if padded is None else rules.WeightedSums(padded).importance
    usable = _quantize(
        weight.contiguous().view(torch.uint16).numpy(),
        scheme.group,
        RULES[scheme.method],
        scheme.asymmetric,
        stored == torch.bfloat16,
        torch.finfo(stored).eps,
        (grid, width, rules.SHORTEST, rules.LONGEST, rules.SMALLEST_SCALE),
        np.array([width / (part * grid) for part in rules.SHRINK], dtype=f32),
        weights.long().numpy(),
        int(f32(scheme.largest).view(u32) >> 16),
        codes.numpy(),
        scales.numpy(),
        zeros.numpy(),
    )
    if not usable:
        raise unusable(weight, 0, scheme.largest)
    return QuantizedWeight(scheme, codes, scales.to(stored), zeros if scheme.asymmetric else None)


def squared_error(
    scheme: Int4, weight: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None
) -> tuple[float, float]:
    """`scheme.squared_error` of a BF16 weight [N, K] and numbers whose scales are [N, G]."""
    sums = np.empty((2, len(weight)))
    _squared_error(
        weight.contiguous().view(torch.uint16).numpy(),
        scheme.group,
        codes.contiguous().numpy(),
        scales.float().contiguous().numpy(),
        np.empty((0, 0), i8) if zeros is None else zeros.contiguous().numpy(),
        sums,
    )
    return add_rows(torch.from_numpy(sums[0])), add_rows(torch.from_numpy(sums[1]))


@loop
def _quantize(
    bits: Array, group: Number, rule: Number, asymmetric: Number, bf16_scales: Number, least_scale: Number,
    constants: tuple[float, ...], factors: Array, importance: Array, limit: Number,
    codes: Array, scales: Array, zeros: Array,
) -> bool:  # fmt: skip
    """All groups of bits [N, K]; false as soon as a number beyond the limit or a NaN is met."""
    rows, columns = bits.shape
    tile, steps, whole = np.empty(group, f32), np.empty(group, f32), np.empty(group, i32)
    weighted = np.empty(group, i64)
    grid = constants[0]
    for row in range(rows):
        for index in range(scales.shape[1]):
            start, stop = index * group, min(index * group + group, columns)
            lowest, highest = _extremes(bits[row, start:stop])
            if highest > limit or lowest < -limit - 1:
                return False
            _widen(bits[row, start:stop], tile)
            low, high, zero = _number(lowest), _number(highest), f32(0)
            if asymmetric:
                low, high = min(low, f32(0)), max(high, f32(0))
            if rule == 0:
                scale, zero = _plain_rule(low, high, asymmetric, bf16_scales, f32(least_scale))
            else:
                reach, zero = _reach(low, high, asymmetric)
                _to_grid(tile, reach, f32(grid), steps, whole)
                least, most = i32(i32(-8) - i32(zero)), i32(i32(7) - i32(zero))
                if rule == 1:
                    ratio = _search(steps, whole, factors, least, most)
                else:
                    ratio = _search_weighted(steps, importance[index], weighted, factors, least, most)
                scale = _covering(ratio, reach, constants, bf16_scales)
            scales[row, index] = scale
            if asymmetric:
                zeros[row, index] = i8(zero)
            _encode(tile, scale, zero, codes[row, start:stop])
    return True


@step
def _extremes(bits: Array) -> tuple[Number, Number]:
    """Smallest and largest number, as integers in the order of the numbers: -x is the complement of x."""
    low, high = i16(0x7FFF), i16(-0x8000)
    for index in range(len(bits)):
        key = i16(bits[index])
        key = i16(key ^ i16(i16(key >> 15) & i16(0x7FFF)))
        low, high = min(low, key), max(high, key)
    return low, high


@step
def _number(key: Number) -> Number:
    bits = u16(key ^ ((key >> 15) & 0x7FFF))
    return u32(u32(bits) << u32(16)).view(f32)


@step
def _widen(bits: Array, tile: Array) -> None:
    """BF16 to FP32, filled up with zeros."""
    for index in range(len(bits)):
        tile[index] = u32(u32(bits[index]) << u32(16)).view(f32)
    for index in range(len(bits), len(tile)):
        tile[index] = 0


@step
def _to_bf16(number: Number) -> Number:
    """The nearest BF16 number, ties to even."""
    bits = f32(number).view(u32)
    return u32(u32(bits + u32(0x7FFF) + ((bits >> u32(16)) & u32(1))) & u32(0xFFFF0000)).view(f32)


@step
def _plain_rule(
    low: Number, high: Number, asymmetric: Number, bf16_scales: Number, least: Number
) -> tuple[Number, Number]:
    """`rules._rtn` and, for BF16 weights, `rules._rtn_asymmetric`."""
    span = _to_bf16(high - low) if asymmetric else max(high, -low)
    scale = span / (f32(15) if asymmetric else f32(7.5))
    if bf16_scales:
        scale = _to_bf16(scale)
    if scale == 0:
        scale = least
    if not asymmetric or span == 0:
        return scale, f32(0)
    zero = _to_bf16(f32(-8) - _to_bf16(low / scale))
    return scale, np.rint(min(max(zero, f32(-8)), f32(7)))


@step
def _reach(low: Number, high: Number, asymmetric: Number) -> tuple[Number, Number]:
    """What the searched range is a part of, signed where numbers are symmetric; and the zero point."""
    if not asymmetric:
        return (-high if high > -low else -low), f32(0)
    span = high - low
    if span == 0:
        return span, f32(0)
    return span, min(max(np.rint(f32(-8) - low / span * f32(15)), f32(-8)), f32(7))


@step
def _to_grid(tile: Array, reach: Number, grid: Number, steps: Array, whole: Array) -> None:
    """Weights as integers of `grid` steps per reach, as floats and as integers."""
    divisor = f32(1) if reach == 0 else reach
    for index in range(len(tile)):
        steps[index] = np.rint(tile[index] / divisor * grid)
    for index in range(len(tile)):
        whole[index] = i32(steps[index])


@step
def _code(steps: Number, factor: Number, least: Number, most: Number) -> Number:
    """A number on the grid to the code - zero of a range."""
    nearest = f32(steps * factor + ROUND).view(i32)
    return min(max(i32(nearest - ROUND_BITS), least), most)


@step
def _search(steps: Array, whole: Array, factors: Array, least: Number, most: Number) -> Number:
    """sum(t q) / sum(q^2) of the first range of largest gain, sum(t q)^2 / sum(q^2)."""
    best, ratio = f64(-1), f64(0)
    for trial in range(len(factors)):
        mixed, square = i32(0), i32(0)
        for index in range(len(steps)):
            q = _code(steps[index], factors[trial], least, most)
            mixed = i32(mixed + i32(q * whole[index]))
            square = i32(square + i32(q * q))
        divisor = max(f64(square), 1.0)
        gain = f64(mixed) * f64(mixed) / divisor
        if gain > best:
            best, ratio = gain, f64(mixed) / divisor
    return ratio


@step
def _search_weighted(
    steps: Array, importance: Array, weighted: Array, factors: Array, least: Number, most: Number
) -> Number:
    """The same with each term times the importance of its input."""
    for index in range(len(steps)):
        weighted[index] = importance[index] * i64(steps[index])
    best, ratio = f64(-1), f64(0)
    for trial in range(len(factors)):
        mixed, square = i64(0), i64(0)
        for index in range(len(steps)):
            q = i64(_code(steps[index], factors[trial], least, most))
            mixed += q * weighted[index]
            square += q * q * importance[index]
        divisor = max(f64(square), 1.0)
        gain = f64(mixed) * f64(mixed) / divisor
        if gain > best:
            best, ratio = gain, f64(mixed) / divisor
    return ratio


@step
def _covering(ratio: Number, reach: Number, constants: tuple[float, ...], bf16_scales: Number) -> Number:
    """The scale that a search found, as it is stored."""
    grid, width, shortest, longest, smallest = constants
    covered = min(max(ratio * (width / grid), shortest), longest)
    scale = covered * f64(reach) / width
    size = f32(max(abs(scale), smallest))
    if bf16_scales:
        size = _to_bf16(size)
    if reach == 0:
        return f32(1)
    return -size if scale < 0 else size


@step
def _encode(tile: Array, scale: Number, zero: Number, codes: Array) -> None:
    for index in range(len(codes)):
        codes[index] = i8(min(max(np.rint(tile[index] / scale + zero), f32(-8)), f32(7)))


@loop
def _squared_error(bits: Array, group: Number, codes: Array, scales: Array, zeros: Array, sums: Array) -> None:
    """Sums of squares of each row, of errors and of weights, into sums [2, N]."""
    rows, columns = bits.shape
    errors, squares = np.empty(LANES), np.empty(LANES)
    for row in range(rows):
        errors[:], squares[:] = 0, 0
        for index in range(scales.shape[1]):
            start, stop = index * group, min(index * group + group, columns)
            first, last = start % LANES, start % LANES + stop - start
            zero = f32(zeros[row, index]) if zeros.shape[1] else f32(0)
            _add_squares(
                bits[row, start:stop], codes[row, start:stop], scales[row, index], zero,
                errors[first:last], squares[first:last],
            )  # fmt: skip
        sums[0, row], sums[1, row] = _halved(errors), _halved(squares)


@step
def _add_squares(bits: Array, codes: Array, scale: Number, zero: Number, errors: Array, squares: Array) -> None:
    for index in range(len(bits)):
        weight = f64(u32(u32(bits[index]) << u32(16)).view(f32))
        error = f64(f32((f32(codes[index]) - zero) * scale)) - weight
        errors[index] += error * error
        squares[index] += weight * weight


@step
def _halved(lanes: Array) -> Number:
    """Their sum, by adding one half to the other."""
    half = len(lanes) // 2
    while half:
        for index in range(half):
            lanes[index] += lanes[index + half]
        half //= 2
    return lanes[0]

"""FP8 block by block: `schemes.fp8_block128` in two passes over 128 rows, one for the maxima and one for the codes.

Maxima are found on the bits of BF16 without their sign, which are ordered as the numbers are. The cast to e4m3 rounds
an fp32 number to 3 bits of mantissa by adding to its bits; below 2^-6, where codes stand 2^-9 apart, by adding a number
whose own steps are as wide.
"""

import numpy as np
import torch
from torch import Tensor

from qconvert.schemes.fp8_block128 import (
    CODE_MAX,
    LARGEST_WEIGHT,
    SCALE_TYPES,
    SMALLEST_SCALE,
    Fp8Block128,
    block_count,
    unusable,
)
from qconvert.schemes.fused.jit import Array, Number, loop, step
from qconvert.schemes.scheme import QuantizedWeight, add_rows

f32, f64, u8, u16, u32 = np.float32, np.float64, np.uint8, np.uint16, np.uint32
BLOCK = 128  # also the lanes of `scheme.squared_error`
ROUNDING = {"f32": 0, "bf16": 1, "pow2": 2}
SMALLEST_NORMAL = u32(0x3C800000)  # bits of 2^-6
REBIAS = u32(120 << 3)  # between exponents of fp32 and of e4m3, in the place that they have in a code
WIDE, WIDE_BITS = f32(2.0**14), u32(0x46800000)  # steps of 2^-9 above it


def quantize(scheme: Fp8Block128, weight: Tensor, importance: Tensor | None = None) -> QuantizedWeight:
    """BF16 weight [N, K] to codes and scales. Raises UnusableWeight."""
    rows, columns = weight.shape
    codes = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    scales = torch.empty(block_count(rows), block_count(columns))
    usable = _quantize(
        weight.contiguous().view(torch.uint16).numpy(),
        ROUNDING[scheme.scale_type],
        CODE_MAX,
        SMALLEST_SCALE,
        int(f32(LARGEST_WEIGHT).view(u32) >> 16),
        codes.view(torch.uint8).numpy(),
        scales.numpy(),
    )
    if not usable:
        raise unusable(weight)
    return QuantizedWeight(scheme, codes, scales.to(SCALE_TYPES[scheme.scale_type][1]))


def squared_error(
    scheme: Fp8Block128, weight: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None = None
) -> tuple[float, float]:
    """`scheme.squared_error` of a BF16 weight [N, K] and numbers whose scales are [N/128, K/128]."""
    sums = np.empty((2, len(weight)))
    _squared_error(
        weight.contiguous().view(torch.uint16).numpy(),
        codes.contiguous().view(torch.uint8).numpy(),
        scales.float().contiguous().numpy(),
        sums,
    )
    return add_rows(torch.from_numpy(sums[0])), add_rows(torch.from_numpy(sums[1]))


@loop
def _quantize(
    bits: Array, rounding: Number, code_max: Number, smallest: Number, limit: Number, codes: Array, scales: Array
) -> bool:
    """All blocks of bits [N, K]; false as soon as a stripe holds a number beyond the limit or a NaN."""
    rows, columns = bits.shape
    blocks = scales.shape[1]
    maxima = np.empty(blocks, u16)
    for stripe in range(scales.shape[0]):
        first, last = stripe * BLOCK, min(stripe * BLOCK + BLOCK, rows)
        maxima[:] = 0
        for row in range(first, last):
            for block in range(blocks):
                start, stop = block * BLOCK, min(block * BLOCK + BLOCK, columns)
                maxima[block] = max(maxima[block], _largest(bits[row, start:stop]))
        for block in range(blocks):
            if maxima[block] > limit:
                return False
            scales[stripe, block] = _scale(maxima[block], rounding, f32(code_max), f32(smallest))
        for row in range(first, last):
            for block in range(blocks):
                start, stop = block * BLOCK, min(block * BLOCK + BLOCK, columns)
                _encode(bits[row, start:stop], scales[stripe, block], f32(code_max), codes[row, start:stop])
    return True


@step
def _largest(bits: Array) -> Number:
    """Largest magnitude, as bits of BF16."""
    found = u16(0)
    for index in range(len(bits)):
        found = max(found, u16(bits[index] & u16(0x7FFF)))
    return found


@step
def _number(bits: Number) -> Number:
    """BF16 to FP32."""
    return u32(u32(bits) << u32(16)).view(f32)


@step
def _scale(maximum: Number, rounding: Number, code_max: Number, smallest: Number) -> Number:
    """A block's scale as it is stored, from the bits of its maximum."""
    if maximum == 0:
        return f32(1)
    exact = max(f32(_number(maximum) / code_max), smallest)
    bits = f32(exact).view(u32)
    if rounding == 1:  # to BF16, ties to even
        bits = u32(u32(bits + u32(0x7FFF) + ((bits >> u32(16)) & u32(1))) & u32(0xFFFF0000))
    elif rounding == 2:  # up to a power of two
        bits = u32(u32(bits + u32(0x7FFFFF)) & u32(0x7F800000))
    return u32(bits).view(f32)


@step
def _encode(bits: Array, scale: Number, code_max: Number, codes: Array) -> None:
    for index in range(len(bits)):
        sign = u32(u32(bits[index] >> u16(8)) & u32(0x80))
        size = min(f32(_number(u16(bits[index] & u16(0x7FFF))) / scale), code_max)
        exact = f32(size).view(u32)
        normal = u32(u32(u32(exact + u32(0x7FFFF)) + u32(u32(exact >> u32(20)) & u32(1))) >> u32(20)) - REBIAS
        small = u32(f32(f32(size) + WIDE).view(u32) - WIDE_BITS)
        codes[index] = u8(u32(sign | u32(small if exact < SMALLEST_NORMAL else normal)))


@loop
def _squared_error(bits: Array, codes: Array, scales: Array, sums: Array) -> None:
    """Sums of squares of each row, of errors and of weights, into sums [2, N]."""
    rows, columns = bits.shape
    errors, squares = np.empty(BLOCK), np.empty(BLOCK)
    for row in range(rows):
        errors[:], squares[:] = 0, 0
        for block in range(scales.shape[1]):
            start, stop = block * BLOCK, min(block * BLOCK + BLOCK, columns)
            _add_squares(bits[row, start:stop], codes[row, start:stop], scales[row // BLOCK, block], errors, squares)
        sums[0, row], sums[1, row] = _halved(errors), _halved(squares)


@step
def _add_squares(bits: Array, codes: Array, scale: Number, errors: Array, squares: Array) -> None:
    for index in range(len(bits)):
        weight = f64(_number(bits[index]))
        error = f64(f32(_value(codes[index]) * scale)) - weight
        errors[index] += error * error
        squares[index] += weight * weight


@step
def _value(code: Number) -> Number:
    """e4m3 to FP32, NaN left out."""
    size = u32(u32(code) & u32(0x7F))
    normal = u32(u32(size << u32(20)) + u32(120 << 23)).view(f32)
    value = f32(size) * f32(2.0**-9) if size < 8 else normal
    return -value if code & 0x80 else value


@step
def _halved(lanes: Array) -> Number:
    """Their sum, by adding one half to the other."""
    half = len(lanes) // 2
    while half:
        for index in range(half):
            lanes[index] += lanes[index + half]
        half //= 2
    return lanes[0]

"""Arithmetic that means the same on a GPU and in Triton's interpreter.

The interpreter (TRITON_INTERPRET=1) runs kernels on a CPU for tests. It loads and stores bf16 and e4m3 exactly and
widens them, save that subnormal bf16 become zero and NaN codes of e4m3 +-480; but it adds, multiplies and `tl.dot`s
bf16 on the bit patterns, truncates where fp32 becomes bf16, and loses carries where fp32 becomes e4m3. So every kernel

    multiplies matrices with   dot(a, b)  or  dot(a, b, acc)       instead of tl.dot
    widens with                widen(x)                            before any arithmetic on bf16 or e4m3
    narrows with               to_bf16(x), to_e4m3(x), narrow(x, dtype)

Compiled, each is the plain instruction: the branch on INTERPRETING is gone before code is made. TRITON_INTERPRET must
be set before triton is first imported; interpreting and compiling exclude each other within a process.
"""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETING = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def widen(x):
    """Any float to fp32, exactly; NaN stays NaN."""
    if INTERPRETING and x.dtype == tl.bfloat16:
        return (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    elif INTERPRETING and x.dtype == tl.float8e4nv:
        wide = x.to(tl.float32)
        return tl.where(tl.abs(wide) == 480.0, float("nan"), wide)  # no number of e4m3 is 480: it is the NaN code
    else:
        return x.to(tl.float32)


@triton.jit
def dot(a, b, acc=None):
    """a [M, K] times b [K, N] plus acc, in fp32.

    On Hopper, products of e4m3 that are chained through `acc` are kept with about 14 bits; add `dot(a, b)` to an fp32
    sum every 128 of K instead.
    """
    if INTERPRETING:
        return tl.dot(widen(a), widen(b), acc, input_precision="ieee")
    else:
        return tl.dot(a, b, acc)


@triton.jit
def to_bf16(x):
    """fp32 to the nearest bf16, ties to even."""
    if INTERPRETING:
        bits = x.to(tl.uint32, bitcast=True)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        rounded = tl.where(x == x, rounded, 0x7FC00000)  # NaN: the addition could carry into the sign
        return (rounded >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return x.to(tl.bfloat16)


@triton.jit
def to_e4m3(x):
    """fp32 to the nearest e4m3, ties to even; beyond 448 saturates, NaN stays NaN."""
    if INTERPRETING:
        bits = x.to(tl.uint32, bitcast=True)
        sign = (bits >> 24) & 0x80
        size = tl.minimum(tl.abs(x), 448.0)
        bits = size.to(tl.uint32, bitcast=True)
        # From 2^-6 on: round to three bits of mantissa, then move the exponent's bias from 127 to 7.
        normal = ((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3)
        # Below: multiples of 2^-9. fp32 itself rounds to them next to 2^14.
        multiple = (size + 16384.0) - 16384.0
        code = tl.where(size < 0.015625, (multiple * 512.0).to(tl.uint32), normal)
        code = tl.where(x == x, code, 0x7F)
        return (code | sign).to(tl.uint8).to(tl.float8e4nv, bitcast=True)
    else:
        return x.to(tl.float8e4nv)  # cvt.rn.satfinite: saturates by itself


@triton.jit
def narrow(x, dtype: tl.constexpr):
    """fp32 to `dtype`: tl.float32, tl.bfloat16 or tl.float8e4nv."""
    if dtype == tl.bfloat16:
        return to_bf16(x)
    elif dtype == tl.float8e4nv:
        return to_e4m3(x)
    else:
        tl.static_assert(dtype == tl.float32)
        return x

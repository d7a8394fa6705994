"""The second half of a product whose K was cut into ranges: the ranges' fp32 sums added in a fixed order.

No atomics: the result does not depend on which program came first, and a sum needs no zeroed memory.
"""

import triton
import triton.language as tl
from torch import Tensor

from qconvert_kernels.numerics import narrow


@triton.jit
def add_splits(PARTS, Y, size, SPLITS: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Y = PARTS[0] + PARTS[1] + ..., always in this order; PARTS [SPLITS, size] fp32."""
    at = tl.program_id(0).to(tl.int64) * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    inside = at < size
    total = tl.load(PARTS + at, inside, other=0.0)
    for split in tl.static_range(1, SPLITS):
        total += tl.load(PARTS + size.to(tl.int64) * split + at, inside, other=0.0)
    tl.store(Y + at, narrow(total, Y.dtype.element_ty), inside)


def add(parts: Tensor, y: Tensor) -> None:
    """parts [SPLITS, M, N] fp32 -> y [M, N]."""
    add_splits[(triton.cdiv(y.numel(), 1024),)](parts, y, y.numel(), SPLITS=parts.shape[0], BLOCK_SIZE=1024)

"""How far a product may be from the fp64 product of the dequantized factors.

Let S = sum_k |x_k| |w_k| in exact numbers. Products of e4m3 with e4m3 or bf16 fit fp32 exactly (8 and 12 bits). The sum
of a block of 128 in any order errs by at most 127 * 2^-24 S; scaling it rounds thrice; adding the blocks, in any order
and any split, errs by at most (K / 128) * 2^-24 S; INT4 has up to four sums a block, hence three more. Rounding the
result to bf16 costs at most half a step, 2^-8 of it. A plain product of dequantized factors sums K numbers instead,
each rounded up to three times before.
"""

import torch
from torch import Tensor

FP32 = 2.0**-24


def assert_close(got: Tensor, x: Tensor, weight: Tensor, *, plain_sum_of: int | None = None) -> None:
    """got [M, N] against x [M, K] times weight [N, K]^T, both fp64; the dtype of `got` is the rounding it was given."""
    exact, size = x @ weight.T, x.abs() @ weight.abs().T
    roundings = 127 + 3 + 4 * -(-x.shape[1] // 128) if plain_sum_of is None else plain_sum_of + 3
    allowed = roundings * FP32 * 1.01 * size
    if got.dtype == torch.bfloat16:
        allowed += 2.0**-8 * (exact.abs() + allowed) + 2.0**-134  # half of the smallest subnormal
    wrong = ~((got.double() - exact).abs() <= allowed)  # NaN is wrong too
    assert not wrong.any(), f"{int(wrong.sum())} of {wrong.numel()} off, first at {wrong.nonzero()[0].tolist()}"

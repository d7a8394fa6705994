"""The truth of the INT4 product, in plain torch.

    y[m, n] = sum_g  s[n, g] * sum_{k in g} x[m, k] * (code[n, k] - zero[n, g])

The scale is applied to the fp32 sum of a group. An engine that rounds each weight code * scale to bf16 first errs by up
to 2^-8 more per weight.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qconvert_kernels.int4_gemm.packing import PackedInt4, unpack


def dequantize(packed: PackedInt4, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weight [N, K]."""
    codes, scales, zeros = unpack(packed)
    values = codes.to(dtype)
    if zeros is not None:
        values -= _across(zeros, packed).to(dtype)
    return values * _across(scales, packed).to(dtype)


def int4_gemm_nt(
    x: Tensor,
    packed: PackedInt4,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
    accumulate: torch.dtype = torch.float32,
) -> Tensor:
    """x [M, K] bf16 -> [M, N]."""
    return F.linear(x.to(accumulate), dequantize(packed, accumulate)).to(out_dtype)


def _across(values: Tensor, packed: PackedInt4) -> Tensor:
    """[N, K/g] repeated over each group: [N, K]."""
    return values.repeat_interleave(packed.group, 1)[:, : packed.columns]

"""The truth of the block-FP8 product, in plain torch.

W8A8   y[m, n] = sum_b  xs[m, b] * ws[n / 128, b] * sum_{k in b} x[m, k] * w[n, k]      b: blocks of 128 along K
W8A16  the same with x in bf16 and xs = 1
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qconvert_kernels.quantize_activations.naive import QuantizedActivations
from qconvert_kernels.quantize_activations.naive import dequantize as dequantize_activations

BLOCK = 128


def dequantize(codes: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """codes [N, K] e4m3 times scales [N/128, K/128]; the last blocks may be smaller."""
    rows, columns = codes.shape
    wide = scales.to(dtype).repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
    return codes.to(dtype) * wide


def fp8_block_gemm_nt(
    x: Tensor | QuantizedActivations,
    codes: Tensor,
    scales: Tensor,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
    accumulate: torch.dtype = torch.float32,
) -> Tensor:
    """x [M, K] bf16 or quantized, codes [N, K], scales [N/128, K/128] -> [M, N]."""
    dense = x.to(accumulate) if isinstance(x, Tensor) else dequantize_activations(x, accumulate)
    return F.linear(dense, dequantize(codes, scales, accumulate)).to(out_dtype)

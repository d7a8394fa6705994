"""The truth of activation quantization, in plain torch.

scale = largest magnitude of 128 neighbours / 448, in fp32; a group of zeros has scale 1
code  = e4m3(x / scale), saturating, ties to even
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

GROUP = 128
LIMIT = 448.0  # the largest e4m3 number


class QuantizedActivations(NamedTuple):
    """codes [M, K] e4m3, scales [M, ceil(K / 128)] fp32; x is about codes * scales."""

    codes: Tensor
    scales: Tensor


def quantize(x: Tensor) -> QuantizedActivations:
    """x [M, K] by token and group of 128; the last group may be shorter."""
    width = x.shape[-1]
    groups = F.pad(x.float(), (0, -width % GROUP)).view(x.shape[0], -(-width // GROUP), GROUP)  # [M, K/128, 128]
    largest = groups.abs().amax(-1)
    # A tensor on the right: dividing by a Python number, torch multiplies with its rounded reciprocal on a GPU.
    scales = largest / largest.new_tensor(LIMIT)
    scales = torch.where(scales == 0, 1.0, scales)
    codes = (groups / scales[..., None]).clamp(-LIMIT, LIMIT).to(torch.float8_e4m3fn)
    return QuantizedActivations(codes.flatten(-2)[..., :width].contiguous(), scales)


def dequantize(x: QuantizedActivations, dtype: torch.dtype = torch.float32) -> Tensor:
    """[M, K] in `dtype`."""
    return x.codes.to(dtype) * x.scales.to(dtype).repeat_interleave(GROUP, -1)[:, : x.codes.shape[1]]


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * (1 + weight), in fp32, rounded once to the dtype of x."""
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * (1.0 + weight.float())).to(x.dtype)


def silu_mul(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, each of the two steps rounded to the dtype of the inputs."""
    return F.silu(gate) * up

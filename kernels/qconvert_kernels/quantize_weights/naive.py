"""The truth of weight quantization, in plain torch: the numbers of `qconvert quantize`, written down once more.

This package knows nothing of `qconvert`, whose schemes are the contract; tests hold both against each other, bit for
bit and constant for constant.

    FP8    scale = round(max |W| / 448) over blocks of 128 x 128, to bf16, fp32 or up to a power of two; at least 2^-126
    INT4   groups of consecutive inputs of a row
      rtn  scale = max |W| / 7.5, or (max - min) / 15 and zero = round(-8 - min / scale), 0 inside [min, max]
      mse  of ten ranges, that with the largest sum(t q)^2 / sum(q^2); its best scale sum(t q) / sum(q^2) is stored

A block or group of zeros has scale 1 (rtn: 2^-7, or 2^-23 in fp32). One that holds NaN or a number beyond `limit` gets
the scale NaN and unspecified codes: whoever called knows what to say about it. `squared_errors` says how far the
numbers are from the weight.

Left out: importance of inputs, f16 scales.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 128
CODE_MAX = 448.0
SMALLEST_SCALE = 2.0**-126
LARGEST_WEIGHT = 2.0**127
LOWEST, HIGHEST = -8, 7
SHRINK = (1.0, 1.12, 1.06, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.64)  # ranges to try, as parts of the span
SHORTEST, LONGEST = 0.5, 1.2  # what a stored scale may cover of the span
GRID, GRID_ASYMMETRIC = 2.0**13, 2.0**12  # steps of the span: sums of integers are exact in fp32, in any order
SCALE_TYPES = {"bf16": torch.bfloat16, "f32": torch.float32, "pow2": torch.bfloat16}


class Quantized(NamedTuple):
    """codes [N, K] e4m3 or int8; scales [N/128, K/128] or [N, K/group]; zeros int8 like scales, or None."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None


def limit(asymmetric: bool) -> float:
    """The largest magnitude that has a code; a span of two of them must be finite."""
    return LARGEST_WEIGHT / 2 if asymmetric else LARGEST_WEIGHT


def fp8_block128(weight: Tensor, scales: str = "bf16") -> Quantized:
    """Weight [N, K] bf16 or fp32; scales "bf16", "f32" or "pow2"."""
    rows, columns = weight.shape
    padded = F.pad(weight.float(), (0, -columns % BLOCK, 0, -rows % BLOCK))
    tiles = padded.view(-1, BLOCK, padded.shape[1] // BLOCK, BLOCK)  # [N/128, 128, K/128, 128]
    largest = tiles.abs().amax((1, 3))
    # A tensor on the right: dividing by a Python number, torch multiplies with its rounded reciprocal on a GPU.
    scale = (largest / torch.full_like(largest, CODE_MAX)).clamp_min(SMALLEST_SCALE)
    if scales == "pow2":
        scale = ((scale.view(torch.int32) + 0x7FFFFF) & 0x7F800000).view(torch.float32)
    scale = torch.where(largest == 0, 1.0, scale.to(SCALE_TYPES[scales]).float())
    codes = (tiles / scale[:, None, :, None]).clamp(-CODE_MAX, CODE_MAX).view(padded.shape)[:rows, :columns]
    stored = torch.where(largest <= LARGEST_WEIGHT, scale, float("nan")).to(SCALE_TYPES[scales])
    return Quantized(codes.to(torch.float8_e4m3fn), stored)


def int4(
    weight: Tensor, group: int, scales: str = "bf16", method: str = "mse", *, asymmetric: bool = False
) -> Quantized:
    """Weight [N, K] bf16 or fp32 in groups of 32, 64 or 128; method "rtn" or "mse"."""
    rows, columns = weight.shape
    stored = SCALE_TYPES[scales]
    tiles = F.pad(weight.float(), (0, -columns % group)).view(rows, -1, group)  # [N, G, group]
    low, high = tiles.amin(-1), tiles.amax(-1)  # [N, G]
    usable = torch.maximum(high, -low) <= limit(asymmetric)
    if asymmetric:
        low, high = low.clamp_max(0), high.clamp_min(0)
    own = torch.bfloat16 if weight.dtype == torch.bfloat16 else torch.float32
    choose = _rtn if method == "rtn" else _search
    scale, zero = choose(tiles, low, high, asymmetric, own, stored)
    codes = (tiles / scale[..., None] + zero[..., None]).round().clamp(LOWEST, HIGHEST).nan_to_num(0.0).to(torch.int8)
    marked = torch.where(usable, scale, float("nan")).to(stored)
    zeros = zero.nan_to_num(0.0).to(torch.int8) if asymmetric else None
    return Quantized(codes.view(rows, -1)[:, :columns].contiguous(), marked, zeros)


def _rtn(
    tiles: Tensor, low: Tensor, high: Tensor, asymmetric: bool, own: torch.dtype, stored: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The rule of compressed-tensors, which rounds every step to the weights' own type. Scales and zeros [N, G]."""
    span = (high - low).to(own).float() if asymmetric else torch.maximum(high, -low)
    scale = (span / torch.full_like(span, 15.0 if asymmetric else 7.5)).to(stored).float()
    scale = torch.where(scale == 0, torch.finfo(stored).eps, scale)
    if not asymmetric:
        return scale, torch.zeros_like(scale)
    zero = (LOWEST - (low / scale).to(own).float()).to(own).float()
    return scale, torch.where(span == 0, 0.0, zero.clamp(LOWEST, HIGHEST).round())


def _search(
    tiles: Tensor, low: Tensor, high: Tensor, asymmetric: bool, own: torch.dtype, stored: torch.dtype
) -> tuple[Tensor, Tensor]:
    """The range of largest gain, the first of equal ones. Scales and zeros [N, G]."""
    grid, width = (GRID_ASYMMETRIC, 15.0) if asymmetric else (GRID, 8.0)
    reach = high - low if asymmetric else torch.where(high > -low, -high, -low)  # symmetric: signed, -1 stands for it
    divisor = torch.where(reach == 0, 1.0, reach)
    steps = (tiles / divisor[..., None] * grid).round()  # integers of at most `grid`
    zero = torch.zeros_like(low)
    if asymmetric:
        zero = torch.where(reach == 0, 0.0, (LOWEST - low / divisor * 15).round().clamp(LOWEST, HIGHEST))
    best, ratio = torch.full_like(low, -1, dtype=torch.float64), torch.zeros_like(low, dtype=torch.float64)
    for part in SHRINK:
        q = (steps * (width / (part * grid))).round()
        q = torch.minimum(torch.maximum(q, (LOWEST - zero)[..., None]), (HIGHEST - zero)[..., None])
        mixed, square = (q * steps).sum(-1).double(), (q * q).sum(-1).double().clamp_min(1.0)
        gain = mixed * mixed / square
        better = gain > best
        best, ratio = torch.where(better, gain, best), torch.where(better, mixed / square, ratio)
    covered = (ratio * (width / grid)).clamp(SHORTEST, LONGEST)
    scale = covered * reach.double() / torch.full_like(covered, width)
    size = scale.abs().clamp_min(SMALLEST_SCALE).float().to(stored).float()
    return torch.where(reach == 0, 1.0, torch.where(scale < 0, -size, size)), zero


def squared_errors(weight: Tensor, quantized: Quantized, block: tuple[int, int]) -> Tensor:
    """fp64 [2, N]: sums of squares of a row's errors and of its weights. A scale covers `block` numbers.

    Columns that stand 128 apart are added one after the other, then one half of the 128 sums to the other.
    """
    rows, columns = weight.shape
    decoded = quantized.codes.float()
    if quantized.zeros is not None:
        decoded = decoded - quantized.zeros.float().repeat_interleave(block[1], 1)[:, :columns]
    scales = quantized.scales.float().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    error = (decoded * scales[:rows, :columns]).double() - weight.double()
    squares = torch.stack([error * error, weight.double() * weight.double()])  # [2, N, K]
    lanes = torch.zeros(2, rows, BLOCK, dtype=torch.float64, device=weight.device)
    for part in torch.split(F.pad(squares, (0, -columns % BLOCK)), BLOCK, -1):
        lanes = lanes + part
    while lanes.shape[-1] > 1:
        lanes = lanes[..., : lanes.shape[-1] // 2] + lanes[..., lanes.shape[-1] // 2 :]
    return lanes[..., 0]

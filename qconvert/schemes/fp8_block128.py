"""FP8 with one scale per 128x128 block, as Qwen and DeepSeek publish it.

    scale[i, j] = round(max |W| over block (i, j) / 448)        rounded to the stored type first
    code[n, k]  = e4m3(clamp(W[n, k] / scale[n // 128, k // 128], -448, 448))     in fp32, ties to even
    W'[n, k]    = code[n, k] * scale[n // 128, k // 128]         one fp32 product, then one cast

e4m3 ("fn" flavour): 4 exponent bits, 3 mantissa bits, largest number 448, no infinity. Dividing by the *rounded*
scale makes the stored pair self-consistent; a scale that was rounded down can push the block's maximum past 448 by at
most 2^-8 of it, which the clamp catches. Blocks at the right and lower edge may be partial.

Scales are stored as `bf16` (Qwen's files), `f32`, or `pow2`: the next power of two upwards, stored in BF16, so that
engines which re-quantize to UE8M0 at load find nothing to change. A block of zeros has scale 1. A scale is never
below 2^-126, the smallest normal number of both types: a block that small loses precision but never divides by zero.
Weights above 2^127 are refused, because 448 times their rounded scale could leave the range of fp32; no trained
weight comes near.

Left out: per-tensor and per-row scales, and activations, which engines quantize while they run.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qconvert.errors import UserError
from qconvert.schemes import fused
from qconvert.schemes.scheme import QuantizedWeight, UnusableWeight, chunk_of, squared_error

BLOCK = 128
CODE_MAX = 448.0
SMALLEST_SCALE = 2.0**-126
LARGEST_WEIGHT = 2.0**127
CODE_NAN, CODE_448, CODE_224 = 0x7F, 0x7E, 0x76  # bits of a code without its sign
EXPONENT_BITS, MANTISSA_BITS = 0x7F800000, 0x007FFFFF  # of an fp32 number
ZERO_BLOCK_SCALES = (1.0, 2.0**-7)  # most tools write 1, compressed-tensors the smallest BF16 step above 1
CLAMPED_SCALE = 1e-4 / CODE_MAX * (1 + 2.0**-8)  # scale of a block whose maximum was raised to 1e-4, rounded up at most
# The number that each byte stands for. Looking it up is five times as fast as torch's own cast on a CPU.
CODE_VALUES = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
SCALE_TYPES = {"bf16": ("BF16", torch.bfloat16), "f32": ("F32", torch.float32), "pow2": ("BF16", torch.bfloat16)}


@dataclass(frozen=True)
class Fp8Block128:
    """The scheme with its scale type: "bf16", "f32" or "pow2"."""

    scale_type: str = "bf16"
    name: str = "fp8-block128"
    row_step: int = BLOCK
    block: tuple[int, int] = (BLOCK, BLOCK)
    weighted: bool = False

    def layout(self, shape: tuple[int, int]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """One byte per weight, one scale per started block."""
        return {
            "codes": ("F8_E4M3", shape),
            "scales": (SCALE_TYPES[self.scale_type][0], (block_count(shape[0]), block_count(shape[1]))),
        }

    def quantize(self, weight: Tensor) -> QuantizedWeight:
        """Weight [N, K] to codes and scales. Raises UnusableWeight."""
        loops = fused.loops_for(self, "fp8_block128", weight)
        return self.plain(weight) if loops is None else loops.quantize(self, weight)

    def plain(self, weight: Tensor) -> QuantizedWeight:
        """`quantize` as its specification has it.

        One stripe after the other, of 128 rows on a CPU (a few times that of narrow weights), so that everything
        between reading and writing stays in cache, and of more on a GPU.
        """
        (rows, columns), device = weight.shape, weight.device
        blocks = block_count(columns)
        codes = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=device)  # [N, K]
        scale_type = SCALE_TYPES[self.scale_type][1]
        scales = torch.empty(block_count(rows), blocks, dtype=scale_type, device=device)  # [N/128, K/128]
        most = chunk_of(device) // max(1, blocks * BLOCK * BLOCK)
        most = max(1, min(most, block_count(rows)))  # S: blocks of rows in a stripe
        stripe = torch.zeros(most * BLOCK, blocks * BLOCK, device=device)  # [S * 128, K padded with zeros]
        for start in range(0, rows, most * BLOCK):
            source, first = weight[start : start + most * BLOCK], start // BLOCK
            part = stripe[: block_count(len(source)) * BLOCK]
            part[: len(source), :columns] = source
            part[len(source) :] = 0
            tiles = part.view(-1, BLOCK, blocks, BLOCK)  # [S, 128, K/128, 128]
            amax = torch.maximum(tiles.amax((1, 3)), -tiles.amin((1, 3)))  # [S, K/128]
            if not bool((amax <= LARGEST_WEIGHT).all()):  # NaN compares false, too
                raise unusable(source, start)
            scale = self._scales(amax)
            scales[first : first + len(scale)] = scale
            tiles.div_(scale[:, None, :, None]).clamp_(-CODE_MAX, CODE_MAX)
            codes[start : start + len(source)].copy_(part[: len(source), :columns])  # the cast rounds ties to even
        return QuantizedWeight(self, codes, scales)

    def dequantize(
        self, codes: Tensor, scales: Tensor, zeros: Tensor | None = None, dtype: torch.dtype = torch.bfloat16
    ) -> Tensor:
        """Codes [N, K] times scales [N/128, K/128] of any float type. There are no zero points in this format."""
        rows, columns = codes.shape
        weight = torch.empty(rows, columns, dtype=dtype, device=codes.device)
        table = CODE_VALUES.to(codes.device)
        across = scales.float().repeat_interleave(BLOCK, dim=1)[:, :columns]  # [N/128, K]
        for index, start in enumerate(range(0, rows, BLOCK)):
            stripe = codes[start : start + BLOCK]  # [128, K]
            values = table.index_select(0, stripe.reshape(-1).view(torch.uint8).int()).view(stripe.shape)
            weight[start : start + BLOCK] = values.mul_(across[index])
        return weight

    def squared_error(
        self, weight: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None = None
    ) -> tuple[float, float]:
        """Sums of squares of errors and of weights; see `scheme.squared_error`."""
        loops = fused.loops_for(self, "fp8_block128", weight)
        if loops is not None:
            return loops.squared_error(self, weight, codes, scales)
        return squared_error(weight, self.dequantize(codes, scales, dtype=torch.float32))

    def bound(self, weight: Tensor, scales: Tensor, zeros: Tensor | None = None) -> Tensor:
        """Half the distance of the two codes around weight / scale: the bound of rounding to the nearest.

        Between 2^e and 2^(e+1) codes stand 2^(e-3) apart, below 2^-6 they stand 2^-9 apart. A scale that was rounded
        down leaves at most 2^-8 of the weight to the clamp, less than the half step of 2^-5 there. Dividing and
        multiplying in fp32 adds 2 * 2^-24 of the value, at most 2^6 * 2^-24 < 4e-6 of the half step.
        """
        rows, columns = weight.shape
        bound = torch.empty(rows, columns, device=weight.device)
        across = scales.float().repeat_interleave(BLOCK, dim=1)[:, :columns]  # [N/128, K]
        for index, start in enumerate(range(0, rows, BLOCK)):
            ratio = weight[start : start + BLOCK].float() / across[index]  # [128, K]
            powers = (ratio.view(torch.int32) & EXPONENT_BITS).view(torch.float32)  # 2^e; subnormal ratios become 0
            bound[start : start + BLOCK] = powers.clamp_min_(2.0**-6).mul_(across[index])
        return bound.mul_(2.0**-4 * (1 + 4e-6))

    def doubts(self, codes: Tensor, scales: Tensor, zeros: Tensor | None = None) -> list[str]:
        """What no tool can have written on purpose, from codes [N, K] and scales [N/128, K/128]; empty if all is well.

        A block's scale is its maximum / 448, so its largest code is 448: with a scale rounded to 8 bits the quotient
        is at least 448 / (1 + 2^-8) = 446.3, and everything above 432 rounds to 448. With powers of two the quotient
        lies in (224, 448]. Exempt are scales that were not made from the maximum: subnormal ones, and those of tools
        that raise a maximum to 1e-4.
        """
        if not bool((torch.isfinite(scales.float()) & (scales.float() > 0)).all()):
            return ["a scale is not a finite positive number"]
        largest = _block_maxima(codes.view(torch.uint8) & 0x7F)  # [N/128, K/128]; without sign, codes grow with values
        made = scales.float().clamp_min(torch.finfo(scales.dtype).tiny) == scales.float()
        made &= scales.float() > CLAMPED_SCALE
        powers_of_two = bool((torch.frexp(scales.float())[0] == 0.5).all())
        least = CODE_224 if powers_of_two else CODE_448
        zero_scale = torch.stack([scales.float() == value for value in ZERO_BLOCK_SCALES]).any(0)
        empty = largest == 0
        wrong = {
            "holds a NaN code": largest == CODE_NAN,
            "is all zeros under the scale of a block that is not": empty & ~zero_scale & made,
            f"has no code as large as {224 if powers_of_two else 448}": ~empty & (largest < least) & made,
        }
        return [
            f"block {tuple(where[0].tolist())} {text} ({len(where)} such blocks)"
            for text, mask in wrong.items()
            if len(where := mask.nonzero())
        ]

    def _scales(self, amax: Tensor) -> Tensor:
        """Block maxima to scales, as fp32 numbers that the stored type represents exactly."""
        exact = (amax / torch.full_like(amax, CODE_MAX)).clamp_min(SMALLEST_SCALE)
        if self.scale_type == "pow2":  # up to the next: a mantissa that is not empty carries into the exponent
            exact = ((exact.view(torch.int32) + MANTISSA_BITS) & EXPONENT_BITS).view(torch.float32)
        stored = exact.to(SCALE_TYPES[self.scale_type][1]).float()
        return torch.where(amax == 0, 1.0, stored)


def make(*, scales: str = "bf16", method: str | None = None, asymmetric: bool = False) -> Fp8Block128:
    """The scheme with scales stored as "bf16", "f32" or "pow2"; there is one rule for scales and no zero point."""
    if method not in (None, "rtn") or asymmetric:
        raise UserError(
            "FP8 block-128 knows plain rounding only",
            found="--asymmetric" if asymmetric else f"--method {method}",
            fix="leave this option out, or choose an INT4 scheme",
        )
    if scales not in SCALE_TYPES:
        raise UserError(
            f"unknown type of scales {scales!r}", expected=", ".join(SCALE_TYPES), fix="give one as --scales"
        )
    return Fp8Block128(scales)


def block_count(length: int) -> int:
    """Blocks that a number of rows or columns begins."""
    return -(-length // BLOCK)


def _block_maxima(bits: Tensor) -> Tensor:
    """Largest number of each block of [N, K], partial blocks included: [N/128, K/128]."""
    rows, columns = bits.shape
    padded = torch.nn.functional.pad(bits, (0, -columns % BLOCK, 0, -rows % BLOCK))
    tallest = padded.view(block_count(rows), BLOCK, -1).amax(1)  # whole rows at a time, which is the fast direction
    return tallest.view(block_count(rows), -1, BLOCK).amax(2)


def unusable(stripe: Tensor, first_row: int = 0) -> UnusableWeight:
    """The first value of the stripe [128, K] that is NaN, infinite or too large."""
    row, column = (~(stripe.float().abs() <= LARGEST_WEIGHT)).nonzero()[0].tolist()
    return UnusableWeight(first_row + row, column, float(stripe[row, column]))

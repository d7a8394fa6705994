"""Four-bit integers with one scale per group of consecutive inputs of one output row; weight-only.

    code[n, k]  = clamp(round(W[n, k] / scale[n, k // group] + zero[n, k // group]), -8, 7)      in fp32, ties to even
    W'[n, k]    = (code[n, k] - zero[n, k // group]) * scale[n, k // group]     one fp32 product, then one cast

codes: int8 [N, K], -8..7.  scales: BF16 [N, G], G = ceil(K / group), rounded before a code is chosen.  zeros: int8
[N, G], -8..7, in asymmetric numbers only. Symmetric scales may be negative: the number furthest from zero then is
exactly -8 * scale, whatever its sign, and all sixteen codes are used. A last group may be shorter; rows are
independent. How a file packs these numbers is the business of its format.

Which scale: see `rules`. Weights above 2^127 (2^126 with zero points) are refused, so that codes times scales stay
finite.

Left out: other widths, scales over whole rows, and permuted inputs (act-order), which engines no longer load.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qconvert.errors import UserError
from qconvert.schemes import fused
from qconvert.schemes.int4 import rules
from qconvert.schemes.scheme import QuantizedWeight, UnusableWeight, chunk_of, squared_error

METHODS = ("mse", "rtn", "imatrix", "gptq")  # the first is the default
WEIGHTED = ("imatrix", "gptq")  # scales are searched with the importance of inputs; gptq then goes on in `gptq`
MOST_MOVED = 1  # steps by which gptq may move a code away from plain rounding; more gains nothing (design note)
LARGEST_WEIGHT = 2.0**127
# bf16 is what we write; the others occur in files of other tools.
SCALE_TYPES = {"bf16": ("BF16", torch.bfloat16), "f16": ("F16", torch.float16), "f32": ("F32", torch.float32)}
# Scales of groups of zeros: ours, the smallest step above 1 of compressed-tensors, (1 - -1) / 15 of GPTQ.
ZERO_GROUP_SCALES = (1.0, 2.0**-7, 2.0**-10, 2.0**-23, 2 / 15)
FLOOR_SCALE = 1e-5  # tools clamp scales from below here, or at smaller numbers


@dataclass(frozen=True)
class Int4:
    """The scheme with its group size, scale type, rule for scales, and whether it has zero points.

    The method matters to `quantize` alone; whoever only reads numbers may leave it out.
    """

    group: int = 128
    scale_type: str = "bf16"
    method: str = METHODS[0]
    asymmetric: bool = False
    row_step: int = 1

    @property
    def name(self) -> str:
        """Public name."""
        return f"int4-g{self.group}"

    @property
    def block(self) -> tuple[int, int]:
        """A scale belongs to a group within one row."""
        return 1, self.group

    @property
    def weighted(self) -> bool:
        """Whether `quantize` takes the importance of inputs."""
        return self.method in WEIGHTED

    def layout(self, shape: tuple[int, int]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """The numbers before a format packs them: one signed byte per weight, one scale per started group."""
        groups = (shape[0], -(-shape[1] // self.group))
        parts: dict[str, tuple[str, tuple[int, ...]]] = {
            "codes": ("I8", shape),
            "scales": (SCALE_TYPES[self.scale_type][0], groups),
        }
        return parts | {"zeros": ("I8", groups)} if self.asymmetric else parts

    @property
    def most_moved(self) -> int:
        """Steps by which a code may differ from plain rounding."""
        return MOST_MOVED if self.method == "gptq" else 0

    @property
    def largest(self) -> float:
        """The largest magnitude of a weight; with zero points two of them make a span, which must be finite."""
        return LARGEST_WEIGHT / 2 if self.asymmetric else LARGEST_WEIGHT

    def quantize(self, weight: Tensor, importance: Tensor | None = None) -> QuantizedWeight:
        """Weight [N, K] to numbers; `importance` [K] of the inputs for methods that weigh. Raises UnusableWeight."""
        if self.weighted != (importance is not None):
            raise ValueError(f"method {self.method} takes {'no ' * (importance is not None)}importance of inputs")
        loops = self._loops(weight)
        return self.plain(weight, importance) if loops is None else loops.quantize(self, weight, importance)

    def plain(self, weight: Tensor, importance: Tensor | None = None) -> QuantizedWeight:
        """`quantize` as its specification has it, a chunk of values at a time."""
        (rows, columns), device = weight.shape, weight.device
        groups = -(-columns // self.group)
        codes = torch.empty(rows, columns, dtype=torch.int8, device=device)  # [N, K]
        scales = torch.empty(rows, groups, dtype=SCALE_TYPES[self.scale_type][1], device=device)  # [N, G]
        zeros = torch.empty(rows, groups, dtype=torch.int8, device=device) if self.asymmetric else None  # [N, G]
        step = max(1, min(rows, chunk_of(device) // (groups * self.group)))
        stripe = torch.zeros(step, groups * self.group, device=device)  # [step, K padded with zeros]
        importance = None if importance is None else importance.to(device)
        choose = rules.rule(self.method, self.asymmetric, weight.dtype, scales.dtype, self.padded(importance))
        for start in range(0, rows, step):
            part = stripe[: min(step, rows - start)]
            part[:, :columns] = weight[start : start + step]
            tiles = part.view(-1, self.group)  # [step * G, group]
            low, high = tiles.amin(-1), tiles.amax(-1)  # [step * G]
            if not bool((torch.maximum(high, -low) <= self.largest).all()):  # NaN compares false, too
                raise unusable(weight[start : start + step], start, self.largest)
            scale, zero = choose(tiles, low, high)
            scales[start : start + step] = scale.view(-1, groups)
            if zeros is not None and zero is not None:
                zeros[start : start + step] = zero.view(-1, groups)
            codes[start : start + step] = rules.encode(tiles, scale, zero).view(part.shape)[:, :columns]
            part[:, columns:] = 0  # encoding left zero points there
        return QuantizedWeight(self, codes, scales, zeros)

    def dequantize(
        self, codes: Tensor, scales: Tensor, zeros: Tensor | None = None, dtype: torch.dtype = torch.bfloat16
    ) -> Tensor:
        """Codes [N, K], scales of any float type and zeros [N, G] back to a weight [N, K]."""
        rows, columns = codes.shape
        weight = torch.empty(rows, columns, dtype=dtype, device=codes.device)
        step = max(1, chunk_of(codes.device) // max(1, columns))
        for start in range(0, rows, step):
            values = codes[start : start + step].float()  # [step, K]
            if zeros is not None:
                values -= self._across(zeros[start : start + step], columns)
            weight[start : start + step] = values.mul_(self._across(scales[start : start + step], columns))
        return weight

    def squared_error(
        self, weight: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None = None
    ) -> tuple[float, float]:
        """Sums of squares of errors and of weights; see `scheme.squared_error`."""
        loops = replace(self, method="rtn")._loops(weight)  # how the numbers were chosen does not matter here
        if loops is not None:
            return loops.squared_error(self, weight, codes, scales, zeros)
        return squared_error(weight, self.dequantize(codes, scales, zeros, torch.float32))

    def bound(self, weight: Tensor, scales: Tensor, zeros: Tensor | None = None) -> Tensor:
        """Half a step inside the range of the codes; outside, the distance to its end, if the search could choose it.

        Rounding to the nearest leaves |scale| / 2 inside [-8 - zero, 7 - zero] * scale. A number outside is cut off at
        the end and keeps the difference. But no rule lets a scale cover less than SHORTEST of its group's span, so
        that cutting off more than 1 - SHORTEST * 7/8 of the span means another scale than the one that was chosen.
        (7/8: a symmetric range ends at 8 on one side and at 7 on the other; the scale may then have been rounded down
        by 2^-8.) Three fp32 roundings add 3 * 2^-24 of at most 16 steps, less than 1e-5 of half a step.
        """
        columns = weight.shape[1]
        weight = weight.float()
        step, zero = self._across(scales, columns), 0.0 if zeros is None else self._across(zeros, columns)
        place = weight / step + zero
        cut = torch.maximum(place - 7, -8 - place).mul_(step.abs())  # [N, K]; distance to the range, negative inside
        most = 1 - rules.SHORTEST * 7 / 8 * (1 - 2.0**-8)
        cut = torch.minimum(cut, most * self._across(self._spans(weight), columns))
        return torch.maximum(step.abs() * 0.5, cut).add_(self.most_moved * step.abs()).mul_(1 + 1e-5)

    def doubts(self, codes: Tensor, scales: Tensor, zeros: Tensor | None = None) -> list[str]:
        """What no tool can have written on purpose; empty if all is well.

        A scale is made to spread the codes of its group over their range, -8..7. Codes that stay within half of it
        (max |code| below 4, or code - zero over less than 8 steps, 0 included) belong to another scale: our own rules
        reach 7 at least (8 / LONGEST rounded), and methods that move weights before they round move them by less than
        that. Exempt are scales near the smallest ones that tools allow.
        """
        size = scales.float()
        if not bool((torch.isfinite(size) & (size != 0)).all()):
            return ["a scale is zero or not finite"]
        if bool((codes.amin() < -8) | (codes.amax() > 7)) if codes.numel() else False:
            return ["a code is outside -8..7"]
        low, high = self._extremes(codes, zeros)  # [N, G]; zero itself is always part of the range
        empty = (low == 0) & (high == 0)
        made = size.abs() > FLOOR_SCALE
        of_zeros = torch.stack([(size - value).abs() <= 2.0**-8 * value for value in ZERO_GROUP_SCALES]).any(0)
        narrow = high - low < 8 if zeros is not None else torch.maximum(-low, high) < 4
        wrong = {
            "is all zeros under the scale of a group that is not": empty & made & ~of_zeros,
            "uses less than half of its range of codes": ~empty & made & narrow,
        }
        return [
            f"group {tuple(where[0].tolist())} {text} ({len(where)} such groups)"
            for text, mask in wrong.items()
            if len(where := mask.nonzero())
        ]

    def _loops(self, weight: Tensor) -> fused.Loops | None:
        return None if self.scale_type == "f16" else fused.loops_for(self, "int4", weight)

    def _across(self, values: Tensor, columns: int) -> Tensor:
        """[N, G] to fp32 [N, K]."""
        return values.float().repeat_interleave(self.group, dim=1)[:, :columns]

    def padded(self, importance: Tensor | None) -> Tensor | None:
        """[K] to [G, group]; what is no input has no importance."""
        if importance is None:
            return None
        return torch.nn.functional.pad(importance.double(), (0, -len(importance) % self.group)).view(-1, self.group)

    def _tiles(self, values: Tensor) -> Tensor:
        """[N, K] to [N, G, group], the last group filled up with zeros."""
        padded = torch.nn.functional.pad(values, (0, -values.shape[1] % self.group))
        return padded.view(len(values), -1, self.group)

    def _spans(self, weight: Tensor) -> Tensor:
        """[N, K] to the width of the range that a scale has to cover, zero included: [N, G]."""
        tiles = self._tiles(weight)
        low, high = tiles.amin(-1).clamp_max(0), tiles.amax(-1).clamp_min(0)
        return high - low if self.asymmetric else torch.maximum(high, -low)

    def _extremes(self, codes: Tensor, zeros: Tensor | None) -> tuple[Tensor, Tensor]:
        """Smallest and largest code - zero of each group and of 0: int [N, G]."""
        short = codes.short()  # 7 - -8 does not fit into a code
        if zeros is not None:
            short = short - zeros.short().repeat_interleave(self.group, dim=1)[:, : codes.shape[1]]
        tiles = self._tiles(short)
        return tiles.amin(-1).clamp_max(0), tiles.amax(-1).clamp_min(0)


def make(group: int, *, scales: str = "bf16", method: str | None = None, asymmetric: bool = False) -> Int4:
    """The scheme for one group size."""
    method = method or METHODS[0]
    if scales not in SCALE_TYPES:
        raise UserError(
            f"INT4 has no scales of type {scales!r}", expected=", ".join(SCALE_TYPES), fix="leave --scales out"
        )
    if method not in METHODS:
        raise UserError(f"INT4 has no method {method!r}", expected=", ".join(METHODS), fix="give one as --method")
    return Int4(group, scales, method, asymmetric)


def unusable(stripe: Tensor, first_row: int, largest: float) -> UnusableWeight:
    """The first value of the stripe [step, K] that is NaN, infinite or too large."""
    row, column = (~(stripe.float().abs() <= largest)).nonzero()[0].tolist()
    return UnusableWeight(first_row + row, column, float(stripe[row, column]))

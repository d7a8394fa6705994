"""How INT4 scales are chosen, many groups at a time: tiles [n, group] with their extremes to scales and zero points.

rtn   the rule of compressed-tensors: max |W| / 7.5, or (max - min) / 15 and zero = round(-8 - min / scale) where 0 is
      always inside [min, max]; 2^-7 in place of a scale of 0. Rounded on the way as there, so that scales and zero
      points of BF16 weights are the same bits.
mse   the scale of least squared error that a search finds. The number furthest from 0 becomes -8 * scale, so scales
      can be negative; ranges SHRINK * span are tried. For codes q the best scale is not the one tried but
      sum(w q) / sum(q^2), and it leaves an error of sum(w^2) - sum(w q)^2 / sum(q^2), so that
      the q with the largest sum(w q)^2 / sum(q^2) wins and its best scale is stored, rounded; codes are then made anew.
      With zero points, q stands for code - zero.
imatrix   the same, each term weighted by the importance of its input (E[x^2]).

The same bytes on every machine: the search works on w as integers of GRID steps per span. All sums are then exact in
fp32 (|sum| <= 128 * 8 * 2^13 = 2^23), so that neither their order nor fused operations can change what wins.

Left out: choosing codes other than the nearest (gptq, learned rounding).
"""

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

LOWEST, HIGHEST = -8, 7
SMALLEST_SCALE = 2.0**-126
SHORTEST, LONGEST = 0.5, 1.2  # of the span: bounds of what a stored scale may cover
# Ranges to try, as parts of the span; the first of equally good ones is taken. Above 1 the number furthest from 0 gets
# a code of -7, so that one nearly as far on the other side is not cut off at 7. Sixty ranges would find 0.2% more.
SHRINK = (1.0, 1.12, 1.06, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.64)
GRID = 2.0**13  # steps of the span in the symmetric search
GRID_ASYMMETRIC = 2.0**12  # |q| reaches 15 there

Chosen: TypeAlias = tuple[Tensor, Tensor | None]  # scales and zero points, fp32 [n], exact in their stored types
Rule: TypeAlias = Callable[[Tensor, Tensor, Tensor], Chosen]  # tiles [n, group], low [n], high [n]


def rule(method: str, asymmetric: bool, source: torch.dtype, stored: torch.dtype, importance: Tensor | None) -> Rule:
    """The rule for weights of type `source` and scales of type `stored`; importance is fp64 [G, group]."""
    if method == "rtn":
        return partial(_rtn_asymmetric if asymmetric else _rtn, source=source, stored=stored)
    weigher = Sums() if importance is None else WeightedSums(importance)
    return partial(_search_asymmetric if asymmetric else _search, stored=stored, sums=weigher)


def encode(tiles: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
    """Codes of tiles [n, group] as fp32 integers, in place."""
    tiles.div_(scale[:, None])
    if zero is not None:
        tiles.add_(zero[:, None])
    return tiles.round_().clamp_(LOWEST, HIGHEST)


class Sums:
    """sum(t q) and sum(q^2) of each group, exact in fp32."""

    dtype = torch.float32

    def prepare(self, tiles: Tensor) -> None:
        """Take tiles of integers [n, group] for which sums will be asked."""
        self._tiles, self._products = tiles, torch.empty_like(tiles)

    def write(self, q: Tensor, mixed: Tensor, square: Tensor) -> None:
        """Sums for integers q [n, group] into mixed [n] and square [n]."""
        torch.sum(torch.mul(q, self._tiles, out=self._products), -1, out=mixed)
        torch.sum(torch.mul(q, q, out=self._products), -1, out=square)


class WeightedSums(Sums):
    """The same with each input's importance: integers below 2^20, so that sums are exact in fp64."""

    dtype = torch.float64
    STEPS = 2.0**20 - 1

    def __init__(self, importance: Tensor) -> None:
        largest = importance.amax(-1, keepdim=True)
        # A group whose inputs were never active has no preference. fp64 [G, group]
        self.importance = torch.where(largest > 0, (importance / largest * self.STEPS).round(), 1.0)

    def prepare(self, tiles: Tensor) -> None:
        """The importance of a row's groups repeats for every row."""
        self._weights = self.importance.repeat(len(tiles) // len(self.importance), 1)
        self._weighted = self._weights * tiles
        self._products = torch.empty_like(self._weights)

    def write(self, q: Tensor, mixed: Tensor, square: Tensor) -> None:
        """Sums for integers q [n, group] into mixed [n] and square [n]."""
        torch.sum(torch.mul(q, self._weighted, out=self._products), -1, out=mixed)
        torch.sum(torch.mul(q, q, out=self._products).mul_(self._weights), -1, out=square)


def _rtn(tiles: Tensor, low: Tensor, high: Tensor, *, source: torch.dtype, stored: torch.dtype) -> Chosen:
    span = torch.maximum(high, -low)
    return _nonzero(_stored(span / torch.full_like(span, 7.5), stored), stored), None


def _rtn_asymmetric(tiles: Tensor, low: Tensor, high: Tensor, *, source: torch.dtype, stored: torch.dtype) -> Chosen:
    own = source if source == torch.bfloat16 else torch.float32  # compressed-tensors rounds every step to this type
    low, high = low.clamp_max(0), high.clamp_min(0)
    span = (high - low).to(own).float()
    scale = _nonzero(_stored(span / torch.full_like(span, 15), stored), stored)
    zero = (LOWEST - (low / scale).to(own).float()).to(own).float()
    return scale, torch.where(span == 0, 0.0, zero.clamp_(LOWEST, HIGHEST).round_())


def _nonzero(scale: Tensor, stored: torch.dtype) -> Tensor:
    return torch.where(scale == 0, torch.finfo(stored).eps, scale)


def _search(tiles: Tensor, low: Tensor, high: Tensor, *, stored: torch.dtype, sums: Sums) -> Chosen:
    unit = torch.where(high > -low, -high, -low)  # what -1 stands for: the number furthest from zero, sign turned
    divisor = torch.where(unit == 0, 1.0, unit)
    steps = (tiles / divisor[:, None]).mul_(GRID).round_()  # integers in -2^13..2^13
    sums.prepare(steps)
    found = steps.new_empty(2, len(SHRINK), len(unit), dtype=sums.dtype)
    q = torch.empty_like(steps)
    for index, part in enumerate(SHRINK):
        torch.mul(steps, -LOWEST / (part * GRID), out=q).round_().clamp_(LOWEST, HIGHEST)
        sums.write(q, found[0, index], found[1, index])
    ratio = _best(found)
    covered = (ratio * (-LOWEST / GRID)).clamp_(SHORTEST, LONGEST)  # part of the span that eight steps cover
    return _finish(covered * unit.double() * (1 / -LOWEST), unit == 0, stored), None


def _search_asymmetric(tiles: Tensor, low: Tensor, high: Tensor, *, stored: torch.dtype, sums: Sums) -> Chosen:
    low, high = low.clamp_max(0), high.clamp_min(0)
    span = high - low
    divisor = torch.where(span == 0, 1.0, span)
    steps = (tiles / divisor[:, None]).mul_(GRID_ASYMMETRIC).round_()  # integers in -2^12..2^12
    # The range shrinks towards 0 at both ends, so that its zero point stays.
    zero = torch.where(span == 0, 0.0, (LOWEST - low / divisor * 15).round_().clamp_(LOWEST, HIGHEST))
    least, most = (LOWEST - zero)[:, None], (HIGHEST - zero)[:, None]
    sums.prepare(steps)
    found = steps.new_empty(2, len(SHRINK), len(span), dtype=sums.dtype)
    q = torch.empty_like(steps)
    for index, part in enumerate(SHRINK):
        torch.mul(steps, 15 / (part * GRID_ASYMMETRIC), out=q).round_().clamp_(least, most)
        sums.write(q, found[0, index], found[1, index])
    ratio = _best(found)
    covered = (ratio * (15 / GRID_ASYMMETRIC)).clamp_(SHORTEST, LONGEST)
    return _finish(covered * span.double() / torch.full_like(covered, 15), span == 0, stored), zero


def _best(found: Tensor) -> Tensor:
    """From sums [2, ranges, n], sum(t q) / sum(q^2) of the first range of largest gain: fp64 [n].

    The gain is what the error falls short of sum(w^2): sum(t q)^2 / sum(q^2).
    """
    mixed = found[0].double()
    square = found[1].double().clamp_min_(1.0)  # groups of zeros have no squares
    ratios, gains = mixed / square, mixed * mixed / square  # each rounded once, so that equal gains are equal numbers
    order = torch.arange(len(gains), 0, -1, device=gains.device)[:, None]
    first = len(gains) - ((gains == gains.amax(0)) * order).amax(0)  # argmax may return any of several
    return ratios.gather(0, first[None])[0]


def _finish(scale: Tensor, empty: Tensor, stored: torch.dtype) -> Tensor:
    """fp64 scales to the stored type: never closer to 0 than the smallest normal number; 1 for groups of zeros."""
    size = _stored(scale.abs().clamp_min_(SMALLEST_SCALE).float(), stored)
    return torch.where(empty, 1.0, torch.where(scale < 0, -size, size))


def _stored(scale: Tensor, stored: torch.dtype) -> Tensor:
    return scale.to(stored).float()

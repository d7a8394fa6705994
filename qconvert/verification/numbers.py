"""Checks of the numbers themselves, each tensor by itself in slices of bounded size, so that any checkpoint fits any
memory.

Without a source: kept tensors are finite, and codes and scales are such as quantization makes them (`Scheme.doubts`).
With a source: kept tensors are equal byte for byte, and for quantized ones

    |code * scale - weight| <= bound(weight, scale)        elementwise, in fp32

where the bound belongs to the scheme. Folders of other tools may have chosen their codes before the scale was rounded
to 16 bits, which moves the result by 2^-8 of it at most; it is itself at most 1 + 2^-4 times the weight. With zero
points, weight / scale + zero, at most 8 and more where it is cut off, may also have been rounded to 16 bits, which
moves it by 2^-6 of a step (2^-5 of half a step) at most. They are granted that much more, ours are not. Foreign INT4
may also come from a method that moved weights before it rounded (GPTQ): groups whose codes `schemes.int4.moved` finds
to follow their weights pass, too. Our own say in the manifest by which method they were made. A source that is
quantized itself (of a folder that `dequantize` made) counts by the weights that it stands for.
"""

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qconvert.checkpoint import Checkpoint
from qconvert.errors import UserError
from qconvert.formats import Format, StoredWeight, Weights
from qconvert.formats.weights import load_rows, load_stored
from qconvert.schemes import QuantizedWeight
from qconvert.schemes.int4 import Int4, moved
from qconvert.verification.report import Wrong
from qconvert.verification.stored import PLAIN_TYPES, Stored

SLICE_ELEMENTS = 1 << 18  # small enough for the caches of a core
FOREIGN_SLACK = 2.0**-8 * (1 + 2.0**-4)
FOREIGN_ZERO_SLACK = 2.0**-5


Rows = Callable[[int, int, torch.dtype], Tensor]


@dataclass(frozen=True)
class Source:
    """The weights that a folder was made from, whether its numbers may be those of another tool, and if not, by which
    method they were made (None: the scheme's default)."""

    weights: Weights
    foreign: bool
    method: str | None = None

    def reader(self, name: str) -> Rows:
        """Rows start..stop of a weight as they are; of a quantized one in the type that is asked for."""
        if name not in self.weights.stored:
            return lambda start, stop, dtype: self.weights.checkpoint.read_rows(name, start, stop)
        assert self.weights.format is not None
        reader = Reader(self.weights.checkpoint, self.weights.format, name, self.weights.stored[name])
        return lambda start, stop, dtype: reader.rows(start, stop).dequantize(dtype)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight."""
        return self.weights.shape(name)


def wrong_with_numbers(stored: Stored, source: Source | None, kept: frozenset[str], name: str) -> list[Wrong]:
    """Read one weight, if it has the right shape, and its counterpart in the source. `kept`: stored.kept."""
    original = source if source is not None and name in source.weights else None
    if original is not None and original.shape(name) != stored.inventory.get(name):
        return [("kept" if name in kept else "bounds", f"the source has it in shape {list(original.shape(name))}")]
    if name in kept:
        info = stored.checkpoint.tensors[name]
        right = info.shape == stored.inventory[name] and info.dtype in PLAIN_TYPES
        return list(_wrong_kept(stored, name, original)) if right else []
    if name in stored.weights and _has_layout(stored, name):
        return list(_wrong_quantized(stored, name, original))
    return []


def _wrong_kept(stored: Stored, name: str, source: Source | None) -> Iterator[Wrong]:
    shape = stored.checkpoint.tensors[name].shape
    read = None if source is None else source.reader(name)
    for start, stop in _slices(shape, 1):
        rows = stored.checkpoint.read_rows(name, start, stop)
        if not _all_finite(rows):
            yield "values", f"{_place(~torch.isfinite(rows), start)} is not finite"
            read = None  # one finding a tensor is enough
        if read is None:
            continue
        original = read(start, stop, rows.dtype)
        if original.dtype != rows.dtype:
            yield "kept", f"type {rows.dtype}, in the source {original.dtype}"
            return
        own, theirs = rows.view(torch.uint8), original.view(torch.uint8)
        if not torch.equal(own, theirs):
            yield "kept", f"{_place(own != theirs, start, rows.element_size())} differs from the source"
            return


def _wrong_quantized(stored: Stored, name: str, source: Source | None) -> Iterator[Wrong]:
    assert stored.format is not None
    weight = stored.weights[name]
    scheme = weight.scheme
    doubted = exceeded = False
    try:
        reader = Reader(stored.checkpoint, stored.format, name, weight)
    except UserError as refusal:
        yield "values", str(refusal).replace("\n", ";")
        return
    rows = None if source is None else source.reader(name)
    for start, stop in _slices(stored.inventory[name], scheme.row_step):
        numbers = reader.rows(start, stop)
        codes, scales, zeros = numbers.codes, numbers.scales, numbers.zeros
        doubts = scheme.doubts(codes, scales, zeros)
        if doubts and not doubted:
            doubted = True
            yield "values", f"{'; '.join(doubts)}{f', counted from row {start}' if start else ''}"
        if source is None or rows is None or exceeded:
            continue
        original = rows(start, stop, torch.float32).float()
        within = is_within(numbers, original, source)
        if not bool(within.all()):
            exceeded = True
            yield "bounds", f"{_place(~within, start)} is further from the source than rounding explains"


def _all_finite(rows: Tensor) -> bool:
    """Minimum and maximum show every NaN and infinity, many times as fast as looking at each number."""
    lowest, highest = rows.aminmax()
    return bool(torch.isfinite(lowest) & torch.isfinite(highest))


def is_within(numbers: QuantizedWeight, original: Tensor, source: Source) -> Tensor:
    """Elementwise [N, K]: whether numbers can have been made of these weights."""
    if isinstance(numbers.scheme, Int4) and source.method is not None:
        numbers = replace(numbers, scheme=replace(numbers.scheme, method=source.method))
    error = numbers.dequantize(torch.float32).sub_(original).abs_()
    within = error <= error_limit(numbers, original, source.foreign)  # false for NaN
    if source.foreign and isinstance(numbers.scheme, Int4) and not bool(within.all()):
        within |= moved.follows(original, numbers)
    return within


def error_limit(numbers: QuantizedWeight, original: Tensor, foreign: bool) -> Tensor:
    """How far numbers may be from the weight [N, K] that they were made of, elementwise."""
    limit = numbers.scheme.bound(original, numbers.scales, numbers.zeros)
    if not foreign:
        return limit
    if numbers.zeros is not None:
        limit *= 1 + FOREIGN_ZERO_SLACK
    return limit + FOREIGN_SLACK * original.abs()


class Reader:
    """Rows of a quantized weight: read as they are asked for, or, where a format packs, unpacked once."""

    def __init__(self, checkpoint: Checkpoint, file_format: Format, name: str, stored: StoredWeight) -> None:
        self.rows: Callable[[int, int], QuantizedWeight]
        if file_format.is_striped(stored.scheme):
            self.rows = functools.partial(load_rows, checkpoint, stored)
        else:
            self.rows = load_stored(checkpoint, file_format, name, stored).rows


def _has_layout(stored: Stored, name: str) -> bool:
    """Whether all parts have the shapes that the scheme gives them; `check_shapes` names those that do not."""
    weight = stored.weights[name]
    if len(weight.shape) != 2 or weight.shape != stored.inventory[name]:
        return False
    tensors = stored.checkpoint.tensors
    return all(tensors[weight.parts[part]].shape == expected for part, (_, expected) in weight.layout.items())


def _slices(shape: tuple[int, ...], step: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows with about SLICE_ELEMENTS elements, in multiples of `step` rows."""
    height = max(SLICE_ELEMENTS // math.prod(shape[1:]) // step, 1) * step
    for start in range(0, shape[0], height):
        yield start, min(start + height, shape[0])


def _place(mask: Tensor, first_row: int, item: int = 1) -> str:
    """Index of the first marked element and how many are marked; `item` bytes of the last dimension make an element."""
    marked = mask.nonzero()
    row, *rest = marked[0].tolist()
    if item > 1:  # a mask of bytes
        row, *rest = (row // item,) if not rest else (row, *rest[:-1], rest[-1] // item)
    more = f" and {len(marked) - 1:,} more {'bytes' if item > 1 else 'values'}" if len(marked) > 1 else ""
    return f"[{', '.join(map(str, (row + first_row, *rest)))}]{more}"

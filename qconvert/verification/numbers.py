"""Checks of the numbers themselves, each tensor by itself in slices of bounded size, so that any checkpoint fits any
memory.

Without a source: kept tensors are finite, and codes and scales are such as quantization makes them (`Scheme.doubts`).
With a source: kept tensors are equal byte for byte, and for quantized ones

    |code * scale - weight| <= bound(weight, scale)        elementwise, in fp32

where the bound belongs to the scheme. Folders of other tools may have chosen their codes before the scale was rounded
to 16 bits, which moves the result by 2^-8 of it at most; it is itself at most 1 + 2^-4 times the weight. They are
granted that much more, ours are not. A source that is quantized itself (of a folder that `dequantize` made) counts by
the weights that it stands for.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qconvert.checkpoint import Checkpoint
from qconvert.formats import Weights
from qconvert.schemes import Scheme
from qconvert.verification.report import Wrong
from qconvert.verification.stored import PLAIN_TYPES, Stored

SLICE_ELEMENTS = 1 << 18  # small enough for the caches of a core
FOREIGN_SLACK = 2.0**-8 * (1 + 2.0**-4)


@dataclass(frozen=True)
class Source:
    """The weights that a folder was made from, and whether its maker may have rounded scales after choosing codes."""

    weights: Weights
    foreign: bool

    def rows(self, name: str, start: int, stop: int, dtype: torch.dtype) -> Tensor:
        """Rows of a weight as they are; of a quantized one in the type that is asked for."""
        if name not in self.weights.quantized:
            return self.weights.checkpoint.read_rows(name, start, stop)
        scheme = self.weights.quantized[name]
        codes, scales = read_quantized(self.weights.checkpoint, scheme, dict(self.weights.parts(name)), start, stop)
        return scheme.dequantize(codes, scales, dtype=dtype)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight; codes have the shape of the weight in every format so far."""
        return self.weights.checkpoint.tensors[name].shape


def wrong_with_numbers(stored: Stored, source: Source | None, kept: frozenset[str], name: str) -> list[Wrong]:
    """Read one tensor, if it is a weight of the right shape, and its counterpart in the source. `kept`: stored.kept."""
    info = stored.checkpoint.tensors[name]
    original = source if source is not None and name in source.weights else None
    if original is not None and original.shape(name) != stored.inventory.get(name):
        return [("kept" if name in kept else "bounds", f"the source has it in shape {list(original.shape(name))}")]
    if name in kept and info.shape == stored.inventory[name] and info.dtype in PLAIN_TYPES:
        return list(_wrong_kept(stored, name, original))
    if name in stored.quantized and _has_layout(stored, name):
        return list(_wrong_quantized(stored, name, original))
    return []


def _wrong_kept(stored: Stored, name: str, source: Source | None) -> Iterator[Wrong]:
    shape = stored.checkpoint.tensors[name].shape
    for start, stop in _slices(shape, 1):
        rows = stored.checkpoint.read_rows(name, start, stop)
        if not _all_finite(rows):
            yield "values", f"{_place(~torch.isfinite(rows), start)} is not finite"
            source = None  # one finding a tensor is enough
        if source is None:
            continue
        original = source.rows(name, start, stop, rows.dtype)
        if original.dtype != rows.dtype:
            yield "kept", f"type {rows.dtype}, in the source {original.dtype}"
            return
        own, theirs = rows.view(torch.uint8), original.view(torch.uint8)
        if not torch.equal(own, theirs):
            yield "kept", f"{_place(own != theirs, start, rows.element_size())} differs from the source"
            return


def _wrong_quantized(stored: Stored, name: str, source: Source | None) -> Iterator[Wrong]:
    scheme = stored.quantized[name]
    doubted = exceeded = False
    for start, stop in _slices(stored.inventory[name], scheme.row_step):
        codes, scales = read_quantized(stored.checkpoint, scheme, stored.parts(name), start, stop)
        doubts = scheme.doubts(codes, scales)
        if doubts and not doubted:
            doubted = True
            yield "values", f"{'; '.join(doubts)}{f', counted from row {start}' if start else ''}"
        if source is None or exceeded:
            continue
        weight = source.rows(name, start, stop, torch.float32).float()
        error = scheme.dequantize(codes, scales, dtype=torch.float32).sub_(weight).abs_()
        bound = scheme.bound(weight, scales)
        if source.foreign:
            bound.add_(weight.abs().mul_(FOREIGN_SLACK))
        within = error <= bound  # false for NaN
        if not bool(within.all()):
            exceeded = True
            yield "bounds", f"{_place(~within, start)} is further from the source than rounding explains"


def _all_finite(rows: Tensor) -> bool:
    """Minimum and maximum show every NaN and infinity, many times as fast as looking at each number."""
    lowest, highest = rows.aminmax()
    return bool(torch.isfinite(lowest) & torch.isfinite(highest))


def read_quantized(
    checkpoint: Checkpoint, scheme: Scheme, parts: dict[str, str], start: int, stop: int
) -> tuple[Tensor, Tensor]:
    """Codes and scales of rows start..stop, which begin at a multiple of the scheme's row step."""
    step = scheme.row_step
    scales = checkpoint.read_rows(parts["scales"], start // step, -(-stop // step))
    return checkpoint.read_rows(parts["codes"], start, stop), scales


def _has_layout(stored: Stored, name: str) -> bool:
    """Whether all parts have the shapes that the scheme gives them; `check_shapes` names those that do not."""
    shape = stored.inventory[name]
    if len(shape) != 2:
        return False
    layout = stored.quantized[name].layout((shape[0], shape[1]))
    tensors, parts = stored.checkpoint.tensors, stored.parts(name)
    return all(tensors[parts[part]].shape == expected for part, (_, expected) in layout.items())


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

"""A checkpoint seen by its logical weights: whatever the precision on disk, names are those of the BF16 original."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from qconvert.checkpoint import Checkpoint
from qconvert.errors import UserError
from qconvert.formats.format import Format, StoredWeight, UnreadableNumbers
from qconvert.schemes import QuantizedWeight, Scheme

OTHER_FORMAT = "give another --format"


class Weights:
    """Logical names and tensors of a checkpoint; scales are hidden inside the weights that they belong to."""

    def __init__(self, checkpoint: Checkpoint, file_format: Format | None) -> None:
        self.checkpoint = checkpoint
        self.format = file_format
        self.stored: dict[str, StoredWeight] = {}
        if file_format is None:
            self.names = tuple(checkpoint.tensors)
        else:
            self.names = self._sort(file_format)
        self.quantized: dict[str, Scheme] = {name: stored.scheme for name, stored in self.stored.items()}
        self._known = frozenset(self.names)

    @property
    def config(self) -> dict[str, Any]:
        """config.json."""
        return self.checkpoint.config

    def parts(self, name: str) -> Mapping[str, str]:
        """Part to tensor name on disk for a quantized weight."""
        return self.stored[name].parts

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor or weight."""
        return self.stored[name].shape if name in self.stored else self.checkpoint.tensors[name].shape

    def load(self, name: str) -> Tensor | QuantizedWeight:
        """A kept tensor as it is, a quantized one as its numbers and scales."""
        if name not in self.stored:
            return self.checkpoint.read(name)
        assert self.format is not None
        return load_stored(self.checkpoint, self.format, name, self.stored[name])

    def _sort(self, file_format: Format) -> tuple[str, ...]:
        """Find the quantized weights; names in the order of the original, as far as the places of scales tell it."""
        tensors, positions = (
            self.checkpoint.tensors,
            {name: place for place, name in enumerate(self.checkpoint.tensors)},
        )
        places: dict[str, int] = {}
        for logical in dict.fromkeys(file_format.logical_name(name) for name in tensors):
            stored = file_format.find(logical, tensors)
            if stored is None:
                places[logical] = positions[logical]
                continue
            check_layout(logical, stored, {part: tensors[name].shape for part, name in stored.parts.items()})
            self.stored[logical] = stored
            places[logical] = positions[stored.parts["scales"]]
        self.stored = {name: self.stored[name] for name in sorted(self.stored, key=places.__getitem__)}
        return tuple(sorted(places, key=places.__getitem__))

    def __contains__(self, name: object) -> bool:
        return name in self._known


def check_layout(name: str, stored: StoredWeight, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse parts that do not fit each other: they would be read wrongly, not fail."""
    if len(stored.shape) != 2:
        raise UserError(
            f"{name} is quantized but no matrix", found=str(list(stored.shape)), fix="convert or download again"
        )
    for part, (_, expected) in stored.layout.items():
        if shapes[part] != expected:
            raise UserError(
                f"{stored.parts[part]} does not fit its weight",
                expected=str(list(expected)),
                found=str(list(shapes[part])),
            )


def check_side_parts(weights: Weights, target: Format | None = None) -> None:
    """Read the small parts of every quantized weight, and refuse those whose numbers cannot be read, or written as
    `target`: while a plan is made, so that nothing is half-written."""
    own = weights.format
    for name, stored in weights.stored.items():
        assert own is not None
        parts = {part: weights.checkpoint.read(stored.parts[part]) for part in own.side_parts if part in stored.parts}
        if not parts:
            continue
        try:
            zeros = own.zero_points(stored, parts)
        except UnreadableNumbers as error:
            raise _unreadable(weights.checkpoint, name, error) from error
        if target is None or zeros is None:
            continue
        try:
            target.check_zero_points(zeros)
        except UnreadableNumbers as error:
            raise UserError(f"{name} cannot be stored as {target.name}: {error}", fix=OTHER_FORMAT) from error


def load_stored(checkpoint: Checkpoint, file_format: Format, name: str, stored: StoredWeight) -> QuantizedWeight:
    """Read and unpack a whole weight."""
    parts = {part: checkpoint.read(tensor) for part, tensor in stored.parts.items()}
    try:
        return file_format.unpack(stored, parts)
    except UnreadableNumbers as error:
        raise _unreadable(checkpoint, name, error) from error


def _unreadable(checkpoint: Checkpoint, name: str, error: UnreadableNumbers) -> UserError:
    return UserError(f"{name} cannot be read: {error}", where=str(checkpoint.root), fix="convert again")


def load_rows(checkpoint: Checkpoint, stored: StoredWeight, start: int, stop: int) -> QuantizedWeight:
    """Rows start..stop, which begin at a multiple of the scheme's row step, of a weight whose parts are striped."""
    step = stored.scheme.row_step
    scales = checkpoint.read_rows(stored.parts["scales"], start // step, -(-stop // step))
    return QuantizedWeight(stored.scheme, checkpoint.read_rows(stored.parts["codes"], start, stop), scales)


def join_rows(stripes: Sequence[QuantizedWeight]) -> QuantizedWeight:
    """Consecutive rows of a weight to the whole."""
    if len(stripes) == 1:
        return stripes[0]
    zeros = [numbers.zeros for numbers in stripes if numbers.zeros is not None]
    return QuantizedWeight(
        stripes[0].scheme,
        torch.cat([numbers.codes for numbers in stripes]),
        torch.cat([numbers.scales for numbers in stripes]),
        torch.cat(zeros) if zeros else None,
    )

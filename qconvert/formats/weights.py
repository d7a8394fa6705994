"""A checkpoint seen by its logical weights: whatever the precision on disk, names are those of the BF16 original."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from qconvert.checkpoint import Checkpoint
from qconvert.errors import UserError
from qconvert.formats.format import Format
from qconvert.schemes import QuantizedWeight, Scheme


class Weights:
    """Logical names and tensors of a checkpoint; scales are hidden inside the weights that they belong to."""

    def __init__(self, checkpoint: Checkpoint, file_format: Format | None) -> None:
        self.checkpoint = checkpoint
        self.format = file_format
        self.quantized: dict[str, Scheme] = {}
        self._parts: dict[str, dict[str, str]] = {}
        if file_format is not None:
            types = {name: info.dtype for name, info in checkpoint.tensors.items()}
            self.quantized = file_format.quantized_weights(types)
            self._parts = {name: file_format.part_names(name) for name in self.quantized}
        for name in self.quantized:
            self._check_shapes(name)
        hidden = {part for parts in self._parts.values() for part in parts.values()} - self.quantized.keys()
        self.names = tuple(name for name in checkpoint.tensors if name not in hidden)
        self._known = frozenset(self.names)

    @property
    def config(self) -> dict[str, Any]:
        """config.json."""
        return self.checkpoint.config

    def parts(self, name: str) -> Mapping[str, str]:
        """Part to tensor name on disk for a quantized weight."""
        return self._parts[name]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor or weight; every format so far stores one code per weight."""
        return self.checkpoint.tensors[self._parts[name]["codes"] if name in self.quantized else name].shape

    def load(self, name: str) -> Tensor | QuantizedWeight:
        """A kept tensor as it is, a quantized one as its numbers and scales."""
        if name not in self.quantized:
            return self.checkpoint.read(name)
        parts = {part: self.checkpoint.read(tensor) for part, tensor in self._parts[name].items()}
        return QuantizedWeight(self.quantized[name], parts["codes"], parts["scales"], parts.get("zeros"))

    def _check_shapes(self, name: str) -> None:
        """Refuse parts that do not fit each other: they would be read wrongly, not fail."""
        shape = self.shape(name)
        if len(shape) != 2:
            raise UserError(
                f"{name} is quantized but no matrix", found=str(list(shape)), fix="convert or download again"
            )
        for part, (_, expected) in self.quantized[name].layout((shape[0], shape[1])).items():
            tensor = self._parts[name][part]
            found = self.checkpoint.tensors[tensor].shape
            if found != expected:
                raise UserError(
                    f"{tensor} does not fit its weight", expected=str(list(expected)), found=str(list(found))
                )

    def __contains__(self, name: object) -> bool:
        return name in self._known

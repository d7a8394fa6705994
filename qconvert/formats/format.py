"""What every file format offers: where a quantized weight's parts lie, how its numbers become those parts and back, and
what config.json says about them.

Parts go by name. A scheme's own are "codes", "scales" and "zeros"; a format that packs has others. Where the parts are
the scheme's own (`is_striped`), rows of a weight are rows of its parts, and a reader may take a few at a time;
otherwise a weight is packed and unpacked as a whole.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from qconvert.errors import UserError
from qconvert.schemes import QuantizedWeight, Scheme

CONFIG_KEY = "quantization_config"  # of config.json

Layout = dict[str, tuple[str, tuple[int, ...]]]  # part -> safetensors type, shape


class TensorMeta(Protocol):
    """What a header says about a tensor."""

    @property
    def dtype(self) -> str:
        """Its type in safetensors' words."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        ...


@dataclass(frozen=True)
class StoredWeight:
    """A quantized weight of a folder, from the headers alone."""

    scheme: Scheme
    shape: tuple[int, ...]  # of the weight; two numbers, unless the folder is damaged
    parts: Mapping[str, str]  # part -> tensor on disk
    layout: Layout  # what the parts should be


class UnreadableNumbers(ValueError):
    """The stored numbers contradict each other or the config. The caller knows the weight, we know what is wrong."""


class Format(Protocol):
    """How engines want quantized weights on disk. One that `opened` gave knows the details of its folder's config."""

    @property
    def name(self) -> str:
        """Public name, as given to --format."""
        ...

    @property
    def side_parts(self) -> tuple[str, ...]:
        """Small parts that can tell, while a plan is made, that a weight cannot be read or written."""
        ...

    @property
    def lists_paths(self) -> bool:
        """Whether its list of modules not converted has every kept module by its full path, not patterns."""
        ...

    def opened(self, block: Mapping[str, Any]) -> "Format | None":
        """This format as a `quantization_config` describes it, None if it describes another one. Raises UserError for
        a variant that we cannot read."""
        ...

    def configured(self, scheme: Scheme) -> "Format":
        """This format as it is written for a scheme. Raises UserError for a scheme that it cannot hold."""
        ...

    def part_names(self, weight: str) -> dict[str, str]:
        """Every part that a quantized weight can have to its tensor's name on disk."""
        ...

    def logical_name(self, tensor: str) -> str:
        """The weight that a tensor would be part of; its own name for one that is no part."""
        ...

    def find(self, weight: str, tensors: Mapping[str, TensorMeta]) -> StoredWeight | None:
        """How a weight is stored; None if it is not quantized. Raises UserError if parts are missing or of the wrong
        type; wrong shapes show in the layout."""
        ...

    def is_striped(self, scheme: Scheme) -> bool:
        """Whether parts are the scheme's own codes and scales, row for row."""
        ...

    def layout(self, scheme: Scheme, shape: tuple[int, int], scale_type: str | None = None) -> Layout:
        """Parts of a weight. Raises UserError for a shape that the format cannot hold."""
        ...

    def pack(self, numbers: QuantizedWeight) -> dict[str, Tensor]:
        """A whole weight's numbers to its parts. Raises UnreadableNumbers for numbers that the format cannot hold."""
        ...

    def unpack(self, stored: StoredWeight, parts: Mapping[str, Tensor]) -> QuantizedWeight:
        """A whole weight's parts to its numbers. Raises UnreadableNumbers."""
        ...

    def zero_points(self, stored: StoredWeight, parts: Mapping[str, Tensor]) -> Tensor | None:
        """Zero points [N, G] of a weight, from its `side_parts`. Raises UnreadableNumbers for whatever they tell."""
        ...

    def check_zero_points(self, zeros: Tensor) -> None:
        """Raises UnreadableNumbers for zero points that the format has no place for."""
        ...

    def unsayable(self, block: Mapping[str, Any]) -> list[str]:
        """Settings of a folder beyond those of its weights' numbers, which no other format has a word for."""
        ...

    def config_block(self, scheme: Scheme, kept: Collection[str], converted: Collection[str] = ()) -> dict[str, Any]:
        """The `quantization_config` for config.json, from the paths of modules kept and of modules converted."""
        ...

    def block_of_several(self, converted: Mapping[str, Scheme], kept: Collection[str]) -> dict[str, Any]:
        """The same for modules converted to different schemes. Raises UserError if the format holds one a folder."""
        ...

    def warnings(self, config: Mapping[str, Any]) -> list[tuple[str, str]]:
        """(engine, what it cannot do) with a folder in this format of the model with this config.json."""
        ...

    def excluded(self, block: Mapping[str, Any], modules: Collection[str]) -> dict[str, set[str]]:
        """Every entry of the list of modules not converted, with those of the given module paths that it covers."""
        ...

    def guessed(self, block: Mapping[str, Any], modules: Collection[str]) -> set[str]:
        """Those of the given modules that vLLM takes for full precision without an entry, if they are plain linear
        layers and not experts. SGLang does not."""
        ...


def refuse_several(name: str, converted: Mapping[str, Scheme]) -> UserError:
    """What a format says that has no place for a second scheme."""
    found = ", ".join(sorted({scheme.name for scheme in converted.values()}))
    return UserError(
        f"{name} holds one number format a folder", found=found, fix="give --format compressed-tensors, or one scheme"
    )

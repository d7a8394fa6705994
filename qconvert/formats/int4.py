"""What the INT4 formats have in common: names of parts, types, the group size, and refusals.

A format is a subclass with the suffixes of its parts and its own layout, `pack` and `unpack`. Left out: bits other than
4, group sizes that no scheme has, and groups of channels in changed order (act-order).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from qconvert.errors import UserError
from qconvert.formats.format import Layout, StoredWeight, TensorMeta, UnreadableNumbers, refuse_several
from qconvert.formats.words import PER_WORD
from qconvert.schemes import Scheme, get_scheme

BITS = 4
PREFIX = "int4-g"  # of the schemes' names
SCALE_TYPES = {"BF16": "bf16", "F16": "f16", "F32": "f32"}
WEIGHT = "weight"


@dataclass(frozen=True)
class Int4Format:
    """Base of the formats that pack eight integers a word."""

    group_size: int = 128
    symmetric: bool = True

    name: ClassVar[str]
    lists_paths: ClassVar[bool] = False
    side_parts: ClassVar[tuple[str, ...]] = ()
    suffixes: ClassVar[Mapping[str, str]]  # part -> suffix of the tensor's name, in the place of "weight"
    needed: ClassVar[tuple[str, ...]]  # parts without which a weight cannot be read

    def configured(self, scheme: Scheme) -> Self:
        """With the group size and symmetry of a scheme."""
        return replace(self, group_size=group_size_of(scheme), symmetric=is_symmetric(scheme))

    def part_names(self, weight: str) -> dict[str, str]:
        """Suffixes in the place of "weight"."""
        if not weight.endswith(f".{WEIGHT}"):
            return {}
        return {part: weight.removesuffix(WEIGHT) + suffix for part, suffix in self.suffixes.items()}

    def logical_name(self, tensor: str) -> str:
        """Back from a suffix to "weight"."""
        module, _, last = tensor.rpartition(".")
        return f"{module}.{WEIGHT}" if module and last in self.suffixes.values() else tensor

    def is_striped(self, scheme: Scheme) -> bool:
        """Integers are packed."""
        return False

    def find(self, weight: str, tensors: Mapping[str, TensorMeta]) -> StoredWeight | None:
        """By the names that are there; their shapes are compared later, with the layout."""
        parts = {part: name for part, name in self.part_names(weight).items() if name in tensors and name != weight}
        if not parts:
            return None
        check_parts(weight, parts, self.part_names(weight), self.needed, tensors)
        scales = SCALE_TYPES[tensors[parts["scales"]].dtype]
        scheme = get_scheme(f"{PREFIX}{self.group_size}", scales=scales, asymmetric=not self.symmetric)
        shape = self.shape(tensors[next(iter(parts.values()))].shape)
        layout = self.layout(scheme, shape)
        return StoredWeight(scheme, shape, parts, {part: layout[part] for part in layout if part in parts})

    def zero_points(self, stored: StoredWeight, parts: Mapping[str, Tensor]) -> Tensor | None:
        """None where there are none."""
        return None

    def check_zero_points(self, zeros: Tensor) -> None:
        """There is a place for all sixteen."""

    def block_of_several(self, converted: Mapping[str, Scheme], kept: Collection[str]) -> dict[str, Any]:
        """There is a place for one."""
        raise refuse_several(self.name, converted)

    def warnings(self, config: Mapping[str, Any]) -> list[tuple[str, str]]:
        """None beyond those of its scheme."""
        return []

    def unsayable(self, block: Mapping[str, Any]) -> list[str]:
        """Only weights are quantized."""
        return []

    def guessed(self, block: Mapping[str, Any], modules: Collection[str]) -> set[str]:
        """Engines go by the entries alone."""
        return set()

    def shape(self, packed: tuple[int, ...]) -> tuple[int, int]:
        """The weight's shape from that of the packed integers."""
        raise NotImplementedError

    def layout(self, scheme: Scheme, shape: tuple[int, int], scale_type: str | None = None) -> Layout:
        """Parts of a weight."""
        raise NotImplementedError


def group_size_of(scheme: Scheme) -> int:
    """From its name; refuses other kinds of schemes."""
    if not scheme.name.startswith(PREFIX):
        raise UserError(f"this format holds INT4 only, not {scheme.name}", fix="give another --format")
    return int(scheme.name.removeprefix(PREFIX))


def is_symmetric(scheme: Scheme) -> bool:
    """Whether the scheme has no zero points."""
    return "zeros" not in scheme.layout((PER_WORD, group_size_of(scheme)))


def check_whole_groups(scheme: Scheme, shape: tuple[int, int]) -> None:
    """No engine loads a group that is cut short."""
    if shape[1] % group_size_of(scheme):
        raise UserError(
            f"{scheme.name} does not fit a weight with {shape[1]} inputs",
            expected=f"a multiple of {group_size_of(scheme)}",
            fix="give a scheme with smaller groups, or keep this weight by a rule of the recipe",
        )


def check_whole_words(format_name: str, shape: tuple[int, int]) -> None:
    """Formats that pack along N need eight rows to a word."""
    if shape[0] % PER_WORD:
        raise UserError(
            f"{format_name} cannot hold a weight of {shape[0]} rows",
            expected=f"a multiple of {PER_WORD}",
            fix="keep this weight by a rule of the recipe, or give --format compressed-tensors",
        )


def check_parts(
    weight: str,
    parts: Mapping[str, str],
    names: Mapping[str, str],
    needed: tuple[str, ...],
    tensors: Mapping[str, TensorMeta],
) -> None:
    """All needed parts are there, of readable types, and no plain weight beside them."""
    for part in needed:
        if part not in parts:
            raise UserError(
                f"{weight} is INT4 but has no {part}", expected=names[part], found=", ".join(sorted(parts.values()))
            )
    if weight in tensors:
        raise UserError(
            f"{weight} is there twice, plain and quantized", found=f"{weight}, {next(iter(parts.values()))}"
        )
    if tensors[parts["scales"]].dtype not in SCALE_TYPES:
        raise UserError(
            f"{parts['scales']} has an unknown type",
            expected=", ".join(SCALE_TYPES),
            found=tensors[parts["scales"]].dtype,
        )
    integers = {name: tensors[name].dtype for part, name in parts.items() if part not in ("scales", "shape")}
    wrong = [name for name, dtype in integers.items() if dtype != "I32"]
    if wrong:
        raise UserError(f"{wrong[0]} has an unknown type", expected="I32", found=integers[wrong[0]])


def check_config(block: Mapping[str, Any], expected: Mapping[str, tuple[Any, ...]]) -> None:
    """Settings of a `quantization_config` that we cannot read are refused by name."""
    for key, allowed in expected.items():
        if block.get(key, allowed[0]) not in allowed:
            raise UserError(
                f"this kind of {block.get('quant_method')} is not supported: {key}",
                expected=" or ".join(map(repr, allowed)),
                found=repr(block.get(key)),
            )


def check_overrides(block: Mapping[str, Any], key: str, rules: Mapping[str, Any]) -> None:
    """Settings of single modules that differ from those of the folder are refused by name."""
    for pattern, own in rules.items():
        for name in ("bits", "group_size", "sym"):
            if isinstance(own, Mapping) and own.get(name, block.get(name)) != block.get(name):
                raise UserError(
                    f"more than one kind of INT4 in a folder is not supported: {key} sets {name} for {pattern!r}",
                    expected=repr(block.get(name)),
                    found=repr(own[name]),
                )


def group_size_in(block: Mapping[str, Any], *keys: str) -> int:
    """The group size that a config names, under the first of these keys that it has."""
    found = next((block[key] for key in keys if key in block), None)
    if not isinstance(found, int) or found <= 0:
        raise UserError(f"config.json: {keys[0]} must be a positive number", found=repr(found))
    return found


def symmetric_zeros(zeros: Tensor, expected_word: str) -> None:
    """Zero points of a symmetric file are all in the middle, or somebody has written them by another rule."""
    wrong = zeros != 0
    if bool(wrong.any()):
        off = sorted(set(zeros[wrong].tolist()))
        raise UnreadableNumbers(
            f"zero points are off by {', '.join(map(str, off[:3]))}, though the config says symmetric: "
            f"words of qzeros are {expected_word} there (a mix-up of GPTQ v1 and v2 shifts them by one)"
        )

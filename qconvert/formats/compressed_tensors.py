"""`quant_method: compressed-tensors`, which llm-compressor writes and vLLM, SGLang and transformers load.

    INT4, format "pack-quantized"
    <module>.weight_packed      I32 [N, K/8]       q[n, 8 j + i] + 8 at bits 4 i: packed along K
    <module>.weight_scale       BF16 [N, G]        (also F16, F32)      W = (q - zero) * scale
    <module>.weight_shape       I64 [2]            N, K
    <module>.weight_zero_point  I32 [N/8, G]       zero + 8, packed along N, rounded up; only where asymmetric

    FP8, format "float-quantized", strategy "block"
    <module>.weight             F8_E4M3 [N, K]
    <module>.weight_scale       BF16 [N/128, K/128]    the same multipliers that the format `fp8` calls weight_scale_inv

`ignore` lists what is not quantized: full paths, or patterns with the prefix `re:`, matched from the start of a path.
Left out: other bits and strategies, sparsity, activations other than those that go with block FP8, act-order (g_idx).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from qconvert.errors import UserError
from qconvert.formats.config_groups import (
    BLOCK_SCHEME,
    FP8_ACTIVATIONS,
    TOKEN_ACTIVATIONS,
    Group,
    group_of,
    groups_block,
    read_groups,
    target_test,
)
from qconvert.formats.exclusions import covered
from qconvert.formats.format import Layout, StoredWeight, TensorMeta, UnreadableNumbers
from qconvert.formats.int4 import Int4Format, check_whole_groups, is_symmetric
from qconvert.formats.words import PER_WORD, pack_words, signed, unpack_words, unsigned
from qconvert.schemes import QuantizedWeight, Scheme, get_scheme

METHOD = "compressed-tensors"
FP8_SCALES = {"BF16": "bf16", "F32": "f32", "F16": "f32"}


def pack(codes: Tensor, scales: Tensor, zeros: Tensor | None) -> dict[str, Tensor]:
    """Codes [N, K], scales and zeros [N, G] to the tensors on disk."""
    parts = {
        "packed": pack_words(unsigned(codes)),
        "scales": scales.contiguous(),
        "shape": torch.tensor(codes.shape, dtype=torch.int64),
    }
    if zeros is not None:
        parts["zeros"] = pack_words(unsigned(zeros).T.contiguous()).T.contiguous()  # [N/8, G]
    return parts


def unpack(packed: Tensor, scales: Tensor, shape: Tensor, zeros: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors on disk to codes [N, K], scales and zeros [N, G]."""
    rows, columns = packed.shape[0], packed.shape[1] * PER_WORD
    if shape.tolist() != [rows, columns]:
        raise UnreadableNumbers(f"weight_shape says {shape.tolist()}, its packed integers are {[rows, columns]}")
    return signed(unpack_words(packed, columns)), scales, _zero_points(zeros, rows)


def _zero_points(zeros: Tensor | None, rows: int) -> Tensor | None:
    """[N/8, G] words to [N, G]."""
    return None if zeros is None else signed(unpack_words(zeros.T, rows).T)


@dataclass(frozen=True)
class CompressedTensors(Int4Format):
    """The format; INT4 and FP8 weights may stand side by side, each kind in groups of config.json."""

    groups: tuple[Group, ...] = ()

    name: ClassVar[str] = METHOD
    suffixes: ClassVar[Mapping[str, str]] = {
        "packed": "weight_packed",
        "scales": "weight_scale",
        "shape": "weight_shape",
        "zeros": "weight_zero_point",
    }
    needed: ClassVar[tuple[str, ...]] = ("packed", "scales", "shape")
    side_parts: ClassVar[tuple[str, ...]] = ("zeros",)

    def opened(self, block: Mapping[str, Any]) -> Self | None:
        """All groups of the config are INT4 by groups or FP8 by blocks."""
        if block.get("quant_method") != METHOD:
            return None
        groups = read_groups(block)
        if not self.takes(groups):
            return None
        return replace(self, groups=groups)

    def takes(self, groups: Collection[Group]) -> bool:
        """Whether a folder with these groups is of this format rather than of one beside it."""
        return not any(is_w4a8(group) for group in groups)

    def configured(self, scheme: Scheme) -> Self:
        """Both kinds of schemes."""
        return self if scheme.name == BLOCK_SCHEME else super().configured(scheme)

    def part_names(self, weight: str) -> dict[str, str]:
        """FP8 codes keep the weight's name."""
        return super().part_names(weight) | {"codes": weight}

    def find(self, weight: str, tensors: Mapping[str, TensorMeta]) -> StoredWeight | None:
        """INT4 by its packed integers, FP8 by its type; what is on disk must be what the weight's group says."""
        group = group_of(self.groups, weight.removesuffix(".weight"))
        if weight in tensors and tensors[weight].dtype == "F8_E4M3":
            _check_group(weight, group, BLOCK_SCHEME, BLOCK_SCHEME)
            return _find_fp8(weight, tensors)
        if group is None or group.scheme == BLOCK_SCHEME:
            if super().find(weight, tensors) is not None:
                _check_group(weight, group, "INT4", "")
            return None
        own = replace(self, group_size=group.group_size, symmetric=group.symmetric)
        found = super(CompressedTensors, own).find(weight, tensors)
        if found is not None and not group.symmetric and "zeros" not in found.parts:
            raise UserError(f"{weight} is asymmetric but has no zero points", expected=self.part_names(weight)["zeros"])
        if found is not None and group.symmetric and "zeros" in found.parts:
            raise UserError(f"{found.parts['zeros']} is there, though the config says symmetric")
        return found

    def shape(self, packed: tuple[int, ...]) -> tuple[int, int]:
        """[N, K/8] -> [N, K]."""
        return (packed[0], packed[-1] * PER_WORD)

    def is_striped(self, scheme: Scheme) -> bool:
        """FP8 is not packed."""
        return scheme.name == BLOCK_SCHEME

    def layout(self, scheme: Scheme, shape: tuple[int, int], scale_type: str | None = None) -> Layout:
        """Any shape that the scheme can hold."""
        own = scheme.layout(shape)
        if self.is_striped(scheme):
            return own | {"scales": (scale_type or own["scales"][0], own["scales"][1])}
        check_whole_groups(scheme, shape)
        layout: Layout = {
            "packed": ("I32", (shape[0], shape[1] // PER_WORD)),
            "scales": (scale_type or own["scales"][0], own["scales"][1]),
            "shape": ("I64", (2,)),
        }
        if not is_symmetric(scheme):
            layout["zeros"] = ("I32", (-(-shape[0] // PER_WORD), own["scales"][1][1]))
        return layout

    def pack(self, numbers: QuantizedWeight) -> dict[str, Tensor]:
        """A whole weight."""
        if self.is_striped(numbers.scheme):
            return {"codes": numbers.codes, "scales": numbers.scales}
        return pack(numbers.codes, numbers.scales, numbers.zeros)

    def unpack(self, stored: StoredWeight, parts: Mapping[str, Tensor]) -> QuantizedWeight:
        """A whole weight."""
        if self.is_striped(stored.scheme):
            return QuantizedWeight(stored.scheme, parts["codes"], parts["scales"])
        return QuantizedWeight(
            stored.scheme, *unpack(parts["packed"], parts["scales"], parts["shape"], parts.get("zeros"))
        )

    def zero_points(self, stored: StoredWeight, parts: Mapping[str, Tensor]) -> Tensor | None:
        """Packed along N."""
        return _zero_points(parts.get("zeros"), stored.shape[0])

    def unsayable(self, block: Mapping[str, Any]) -> list[str]:
        """Activations unlike those that other formats take for granted, and what is beyond linear layers."""
        found = [f"{key} {block[key]}" for key in ("kv_cache_scheme", "transform_config") if block.get(key)]
        for raw in (block.get("config_groups") or {}).values():
            int4 = (raw.get("weights") or {}).get("type") == "int"
            usual: Mapping[str, Any] = {} if int4 else FP8_ACTIVATIONS
            own = raw.get("input_activations") or {}
            if {key: own.get(key) for key in usual} != usual or bool(own) != bool(usual):
                found.append(f"input_activations {own or None}")
            if raw.get("output_activations"):
                found.append(f"output_activations {raw['output_activations']}")
        return found

    def config_block(self, scheme: Scheme, kept: Collection[str], converted: Collection[str] = ()) -> dict[str, Any]:
        """One group for all linear layers but the ignored ones."""
        return self.block_of_several(dict.fromkeys(converted, scheme) or {"": scheme}, kept)

    def block_of_several(self, converted: Mapping[str, Scheme], kept: Collection[str]) -> dict[str, Any]:
        """A group for each scheme."""
        return groups_block(converted, kept)

    def excluded(self, block: Mapping[str, Any], modules: Collection[str]) -> dict[str, set[str]]:
        """Paths and patterns of `ignore`."""
        return covered({entry: target_test(entry) for entry in block.get("ignore") or []}, modules)


def is_w4a8(group: Group) -> bool:
    """INT4 weights whose inputs become FP8, a scale a token."""
    own = group.activations or {}
    return group.scheme != BLOCK_SCHEME and {key: own.get(key) for key in TOKEN_ACTIVATIONS} == TOKEN_ACTIVATIONS


def _check_group(weight: str, group: Group | None, stored: str, expected: str) -> None:
    """Engines read a weight by its group; other numbers on the disk would become noise."""
    said = "nothing" if group is None else group.scheme
    if said != expected:
        raise UserError(
            f"{weight} is stored as {stored}, but the group of config.json that covers it says {said}",
            where="config_groups",
            fix="mend the targets of config_groups, or convert again",
        )


def _find_fp8(weight: str, tensors: Mapping[str, TensorMeta]) -> StoredWeight:
    scale = f"{weight}_scale"
    kind = tensors[scale].dtype if scale in tensors else "no such tensor"
    if kind not in FP8_SCALES:
        raise UserError(f"{weight} is FP8 but has no usable scale", expected=f"{scale} of a float type", found=kind)
    shape = tensors[weight].shape
    scheme = get_scheme(BLOCK_SCHEME, scales=FP8_SCALES[kind])
    layout = scheme.layout((shape[0], shape[1])) if len(shape) == 2 else {}
    return StoredWeight(scheme, shape, {"codes": weight, "scales": scale}, layout)


FORMAT = CompressedTensors()

"""`quant_method: gptq`, version 1, which GPTQModel and AutoGPTQ write and vLLM and SGLang load.

    <module>.qweight  I32 [K/8, N]   u[n, 8 j + i] at bits 4 i of word [j, n]: packed along K, transposed
    <module>.qzeros   I32 [G, N/8]   zero point - 1, packed along N; 0x77777777 where symmetric
    <module>.scales   BF16 [G, N]    (also F16, F32)       W[n, k] = (u[n, k] - zero[g, n]) * scale[g, n]
    <module>.g_idx    I32 [K]        group of each input, k // group; some writers leave it out

`checkpoint_format: gptq_v2` stores zero points as they are (0x88888888) and is only read. In version 1 a zero point
of 0 would be stored as -1, which readers take for 15 or for -1: refused both ways. Refused, too: `g_idx` in another
order.
`dynamic` says what is not quantized, by patterns with the prefix `-:`, matched from the start of an engine's path.
"""

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from qconvert.formats.exclusions import covered, regex_test, shortest_runs
from qconvert.formats.format import Layout, StoredWeight, UnreadableNumbers
from qconvert.formats.int4 import (
    BITS,
    Int4Format,
    check_config,
    check_overrides,
    check_whole_groups,
    check_whole_words,
    group_size_in,
    group_size_of,
    symmetric_zeros,
)
from qconvert.formats.words import PER_WORD, pack_words, signed, unpack_words, unsigned
from qconvert.schemes import QuantizedWeight, Scheme

SKIP = "-:"
NO_PLACE = "a zero point of 0 has no place in GPTQ version 1, which stores it minus one"
HEAD = "lm_head"  # the config's key has the name of the module


def pack(codes: Tensor, scales: Tensor, zeros: Tensor | None, group_size: int, *, shift: int = 1) -> dict[str, Tensor]:
    """Codes [N, K], scales and zeros [N, G] to the tensors on disk; `shift` is 1 for version 1, 0 for version 2."""
    points = torch.full(scales.shape, 8, dtype=torch.uint8) if zeros is None else unsigned(zeros)  # [N, G]
    if int(points.min()) < shift:
        raise UnreadableNumbers(NO_PLACE)
    return {
        "qweight": pack_words(unsigned(codes)).T.contiguous(),  # [K/8, N]
        "qzeros": pack_words((points - shift).T.contiguous()),  # [G, N/8]
        "scales": scales.T.contiguous(),  # [G, N]
        "g_idx": torch.arange(codes.shape[1], dtype=torch.int32) // group_size,
    }


def unpack(
    qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor | None, group_size: int, *, shift: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors on disk to codes [N, K], scales and zeros [N, G]."""
    zeros = unpack_zeros(qzeros, g_idx, group_size, shift=shift)
    codes = signed(unpack_words(qweight.T, qweight.shape[0] * PER_WORD))
    return codes, scales.T.contiguous(), zeros


def unpack_zeros(qzeros: Tensor, g_idx: Tensor | None, group_size: int, *, shift: int = 1) -> Tensor:
    """Words [G, N/8] to zero points [N, G], if the groups are in order."""
    if g_idx is not None and not torch.equal(g_idx, torch.arange(len(g_idx), dtype=torch.int32) // group_size):
        raise UnreadableNumbers("its groups are not in order (g_idx, act-order), which no other format can hold")
    points = unpack_words(qzeros, qzeros.shape[1] * PER_WORD).T + shift  # [N, G]
    if int(points.max()) > 15:
        raise UnreadableNumbers("a stored zero point of 15 means 16 to some readers of GPTQ version 1 and 0 to others")
    return signed(points)


@dataclass(frozen=True)
class Gptq(Int4Format):
    """The format; `shift` is 0 for a folder of version 2."""

    shift: int = 1

    name: ClassVar[str] = "gptq"
    suffixes: ClassVar[Mapping[str, str]] = {name: name for name in ("qweight", "qzeros", "scales", "g_idx")}
    needed: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales")
    side_parts: ClassVar[tuple[str, ...]] = ("qzeros", "g_idx")

    def opened(self, block: Mapping[str, Any]) -> Self | None:
        """4 bits in words of 32, version 1 or 2."""
        if block.get("quant_method") != "gptq":
            return None
        check_config(
            block, {"bits": (BITS,), "pack_dtype": ("int32",), "checkpoint_format": ("gptq", "gptq_v2", "", None)}
        )
        rules = (block.get("dynamic") or {}).items()
        check_overrides(block, "dynamic", {pattern: own for pattern, own in rules if not pattern.startswith(SKIP)})
        return dataclasses.replace(
            self,
            group_size=group_size_in(block, "group_size"),
            symmetric=bool(block.get("sym", True)),
            shift=0 if block.get("checkpoint_format") == "gptq_v2" else 1,
        )

    def shape(self, packed: tuple[int, ...]) -> tuple[int, int]:
        """[K/8, N] -> [N, K]; a damaged shape comes out as one that fits nothing."""
        return (packed[-1], packed[0] * PER_WORD)

    def layout(self, scheme: Scheme, shape: tuple[int, int], scale_type: str | None = None) -> Layout:
        """All four tensors."""
        check_whole_groups(scheme, shape)
        check_whole_words(self.name, shape)
        rows, columns = shape
        groups = columns // group_size_of(scheme)
        kind = scale_type or scheme.layout(shape)["scales"][0]
        return {
            "qweight": ("I32", (columns // PER_WORD, rows)),
            "qzeros": ("I32", (groups, rows // PER_WORD)),
            "scales": (kind, (groups, rows)),
            "g_idx": ("I32", (columns,)),
        }

    def pack(self, numbers: QuantizedWeight) -> dict[str, Tensor]:
        """A whole weight."""
        group = group_size_of(numbers.scheme)
        return pack(numbers.codes, numbers.scales, numbers.zeros, group, shift=self.shift)

    def unpack(self, stored: StoredWeight, parts: Mapping[str, Tensor]) -> QuantizedWeight:
        """A whole weight; the zero points of a symmetric one are checked and then left out."""
        group = group_size_of(stored.scheme)
        codes, scales, _ = unpack(
            parts["qweight"], parts["qzeros"], parts["scales"], parts.get("g_idx"), group, shift=self.shift
        )
        return QuantizedWeight(stored.scheme, codes, scales, self.zero_points(stored, parts))

    def zero_points(self, stored: StoredWeight, parts: Mapping[str, Tensor]) -> Tensor | None:
        """Groups must be in order, zero points of a symmetric weight in the middle."""
        group = group_size_of(stored.scheme)
        zeros = unpack_zeros(parts["qzeros"], parts.get("g_idx"), group, shift=self.shift)
        if self.symmetric:
            symmetric_zeros(zeros, "0x77777777" if self.shift else "0x88888888")
        return None if self.symmetric else zeros

    def check_zero_points(self, zeros: Tensor) -> None:
        """Version 1 stores them minus one."""
        if int(zeros.min()) + 8 < self.shift:
            raise UnreadableNumbers(NO_PLACE)

    def config_block(self, scheme: Scheme, kept: Collection[str], converted: Collection[str] = ()) -> dict[str, Any]:
        """As GPTQModel writes it."""
        own = self.configured(scheme)
        return {
            "bits": BITS,
            "checkpoint_format": "gptq",
            "desc_act": False,
            "dynamic": {SKIP + run.pattern: {} for run in shortest_runs(kept, converted)},
            "group_size": own.group_size,
            "lm_head": False,
            "pack_dtype": "int32",
            "quant_method": "gptq",
            "sym": own.symmetric,
        }

    def excluded(self, block: Mapping[str, Any], modules: Collection[str]) -> dict[str, set[str]]:
        """The negative patterns of `dynamic`, and the output layer by a key of its own."""
        patterns = [pattern for pattern in block.get("dynamic") or {} if pattern.startswith(SKIP)]
        tests = {pattern: regex_test(pattern.removeprefix(SKIP)) for pattern in patterns}
        found = covered(tests, modules)
        if not block.get(HEAD) and HEAD in modules:
            found[f"{HEAD}: false"] = {HEAD}
        return found

    def guessed(self, block: Mapping[str, Any], modules: Collection[str]) -> set[str]:
        """By `modules_in_block_to_quantize`, parts of paths in a list or lists of lists; else by the tensors' types."""
        named = block.get("modules_in_block_to_quantize") or []
        parts = [part for item in named for part in (item if isinstance(item, list) else [item])]
        return {module for module in modules if not any(part in module for part in parts)}


FORMAT = Gptq()

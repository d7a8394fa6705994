"""`quant_method: awq`, version "gemm", AutoAWQ's layout, which vLLM, SGLang and transformers load.

    <module>.qweight  I32 [K, N/8]   packed along N; value i of a word is column 8 j + (0, 2, 4, 6, 1, 3, 5, 7)[i]
    <module>.qzeros   I32 [G, N/8]   zero points packed likewise, as they are; 0x88888888 where symmetric
    <module>.scales   BF16 [G, N]    (also F16, F32)       W[n, k] = (u[n, k] - zero[g, n]) * scale[g, n]

`modules_to_not_convert` holds parts of module paths, found anywhere in a path. `zero_point` is always true: engines
read qzeros of symmetric files, too. We add "sym": true to ours, which engines ignore, so that nobody must guess from
the numbers whether a scheme was symmetric. Left out: the "gemv" layouts.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from qconvert.errors import UserError
from qconvert.formats.exclusions import Run, covered, shortest_runs
from qconvert.formats.format import Layout, StoredWeight
from qconvert.formats.int4 import (
    BITS,
    Int4Format,
    check_config,
    check_whole_groups,
    check_whole_words,
    group_size_in,
    group_size_of,
    symmetric_zeros,
)
from qconvert.formats.words import INTERLEAVED, PER_WORD, pack_words, signed, unpack_words, unsigned
from qconvert.schemes import QuantizedWeight, Scheme


def pack(codes: Tensor, scales: Tensor, zeros: Tensor | None) -> dict[str, Tensor]:
    """Codes [N, K], scales and zeros [N, G] to the tensors on disk."""
    points = torch.full(scales.shape, 8, dtype=torch.uint8) if zeros is None else unsigned(zeros)  # [N, G]
    return {
        "qweight": pack_words(unsigned(codes).T.contiguous(), INTERLEAVED),  # [K, N/8]
        "qzeros": pack_words(points.T.contiguous(), INTERLEAVED),  # [G, N/8]
        "scales": scales.T.contiguous(),  # [G, N]
    }


def unpack(qweight: Tensor, qzeros: Tensor, scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The tensors on disk to codes [N, K], scales and zeros [N, G]."""
    rows = qweight.shape[1] * PER_WORD
    codes = signed(unpack_words(qweight, rows, INTERLEAVED).T)
    return codes, scales.T.contiguous(), unpack_zeros(qzeros)


def unpack_zeros(qzeros: Tensor) -> Tensor:
    """Words [G, N/8] to zero points [N, G]."""
    return signed(unpack_words(qzeros, qzeros.shape[1] * PER_WORD, INTERLEAVED).T)


@dataclass(frozen=True)
class Awq(Int4Format):
    """The format."""

    name: ClassVar[str] = "awq"
    suffixes: ClassVar[Mapping[str, str]] = {name: name for name in ("qweight", "qzeros", "scales")}
    needed: ClassVar[tuple[str, ...]] = ("qweight", "qzeros", "scales")
    side_parts: ClassVar[tuple[str, ...]] = ("qzeros",)

    def opened(self, block: Mapping[str, Any]) -> Self | None:
        """4 bits, gemm, under any of the names that its writers use; without "sym" it counts as asymmetric."""
        if block.get("quant_method") != "awq":
            return None
        check_config(block, {"bits": (BITS,), "w_bit": (BITS,), "version": ("gemm", "GEMM"), "zero_point": (True,)})
        group = group_size_in(block, "group_size", "q_group_size")
        return replace(self, group_size=group, symmetric=bool(block.get("sym", False)))

    def shape(self, packed: tuple[int, ...]) -> tuple[int, int]:
        """[K, N/8] -> [N, K]."""
        return (packed[-1] * PER_WORD, packed[0])

    def layout(self, scheme: Scheme, shape: tuple[int, int], scale_type: str | None = None) -> Layout:
        """All three tensors."""
        check_whole_groups(scheme, shape)
        check_whole_words(self.name, shape)
        rows, columns = shape
        groups = columns // group_size_of(scheme)
        kind = scale_type or scheme.layout(shape)["scales"][0]
        return {
            "qweight": ("I32", (columns, rows // PER_WORD)),
            "qzeros": ("I32", (groups, rows // PER_WORD)),
            "scales": (kind, (groups, rows)),
        }

    def pack(self, numbers: QuantizedWeight) -> dict[str, Tensor]:
        """A whole weight."""
        return pack(numbers.codes, numbers.scales, numbers.zeros)

    def unpack(self, stored: StoredWeight, parts: Mapping[str, Tensor]) -> QuantizedWeight:
        """A whole weight; the zero points of a symmetric one are checked and then left out."""
        codes, scales, _ = unpack(parts["qweight"], parts["qzeros"], parts["scales"])
        return QuantizedWeight(stored.scheme, codes, scales, self.zero_points(stored, parts))

    def zero_points(self, stored: StoredWeight, parts: Mapping[str, Tensor]) -> Tensor | None:
        """Those of a symmetric weight must be in the middle."""
        zeros = unpack_zeros(parts["qzeros"])
        if self.symmetric:
            symmetric_zeros(zeros, "0x88888888")
        return None if self.symmetric else zeros

    def config_block(self, scheme: Scheme, kept: Collection[str], converted: Collection[str] = ()) -> dict[str, Any]:
        """As AutoAWQ writes it. Engines search for the entries anywhere in a path, so each must be in no other one."""
        own = self.configured(scheme)
        texts = list(dict.fromkeys(run.text for run in shortest_runs(kept, converted, _is_in)))
        clash = [text for text in texts if any(text in module for module in converted)]
        if clash:
            raise UserError(
                f"awq cannot exclude {clash[0]} alone: engines would exclude every module whose path contains it",
                found=next(module for module in converted if clash[0] in module),
                fix="give --format compressed-tensors, or another recipe",
            )
        return {
            "bits": BITS,
            "group_size": own.group_size,
            "modules_to_not_convert": texts,
            "quant_method": "awq",
            "sym": own.symmetric,
            "version": "gemm",
            "zero_point": True,
        }

    def excluded(self, block: Mapping[str, Any], modules: Collection[str]) -> dict[str, set[str]]:
        """Every path that contains the entry."""
        entries = block.get("modules_to_not_convert") or []
        return covered({entry: _contains(entry) for entry in entries}, modules)

    def guessed(self, block: Mapping[str, Any], modules: Collection[str]) -> set[str]:
        """Without any entry, vLLM takes modules without integers for such in full precision."""
        return set() if block.get("modules_to_not_convert") else set(modules)


def _is_in(run: Run, module: str) -> bool:
    return run.text in module


def _contains(entry: str) -> Callable[[str], bool]:
    return lambda module: entry in module


FORMAT = Awq()

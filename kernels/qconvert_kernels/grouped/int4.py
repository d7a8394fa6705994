"""Stacked experts in INT4, every weight in the order of `int4_gemm.packing`; W = (code - zero) * scale, W4A16 only.

    gate_up   words int16 [E, 2, I/64, H/128, 64, 32]      scales, offsets [E, 2, H/g, I]      I filled up to 64
    down      words int16 [E, H/64, I/128, 64, 32]         scales, offsets [E, I/g, H]         H filled up to 64

Offsets are None where no expert has zero points.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qconvert_kernels.errors import BadInput
from qconvert_kernels.grouped.routing import Layout
from qconvert_kernels.grouped.stacked import Activations, Rows, check_whole
from qconvert_kernels.grouped.tilings import GroupedTiling
from qconvert_kernels.int4_gemm.naive import dequantize
from qconvert_kernels.int4_gemm.packing import PackedInt4
from qconvert_kernels.launch import load_kernels

KERNELS = "grouped.kernels_int4"


@dataclass(frozen=True)
class Int4Experts:
    """`stacked.Experts`; made by `stack`."""

    words_gate_up: Tensor
    scales_gate_up: Tensor
    offsets_gate_up: Tensor | None
    words_down: Tensor
    scales_down: Tensor
    offsets_down: Tensor | None
    hidden: int
    intermediate: int
    group: int

    def __post_init__(self) -> None:
        check_whole(self)

    @classmethod
    def stack(cls, gate: Sequence[PackedInt4], up: Sequence[PackedInt4], down: Sequence[PackedInt4]) -> Int4Experts:
        """From each expert's three weights, as `int4_gemm.packing.repack` makes them."""
        inner, hidden, group = gate[0].rows, gate[0].columns, gate[0].group
        sizes = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
        for (name, (rows, columns)), weights in zip(sizes.items(), (gate, up, down), strict=True):
            for index, packed in enumerate(weights):
                expected = (rows, columns, group, gate[0].offsets is None)
                found = (packed.rows, packed.columns, packed.group, packed.offsets is None)
                if found != expected:
                    text = "expected rows, columns, group, symmetric"
                    raise BadInput(f"{name} of expert {index}: {text} = {expected}, found {found}")
        words, scales, offsets = zip(*(_pair(g, u) for g, u in zip(gate, up, strict=True)), strict=True)
        return cls(
            torch.stack(words), torch.stack(scales), _stack(offsets),
            torch.stack([d.words for d in down]), torch.stack([d.scales for d in down]),
            _stack([d.offsets for d in down]), hidden, inner, group,
        )  # fmt: skip

    @property
    def num_experts(self) -> int:
        """E"""
        return self.words_gate_up.shape[0]

    @property
    def some(self) -> Tensor:
        """One of the tensors."""
        return self.words_gate_up

    def kind(self, activations: Activations) -> str:
        """BF16 activations only."""
        if activations != "none":
            raise BadInput(f"activations: expected none, INT4 weights are multiplied with BF16; found {activations}")
        return "int4_w4a16"

    def expert(self, index: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
        """What one expert's codes stand for."""
        gate, up = (self._packed(index, half) for half in (0, 1))
        return dequantize(gate, dtype), dequantize(up, dtype), dequantize(self._packed(index, None), dtype)

    def _packed(self, index: int, half: int | None) -> PackedInt4:
        """Gate (0), up (1) or down (None) as it was before it was stacked."""
        if half is None:
            offsets = None if self.offsets_down is None else self.offsets_down[index]
            return PackedInt4(
                self.words_down[index], self.scales_down[index], offsets, self.hidden, self.intermediate, self.group
            )
        offsets = None if self.offsets_gate_up is None else self.offsets_gate_up[index, half]
        words, scales = self.words_gate_up[index, half], self.scales_gate_up[index, half]
        return PackedInt4(words, scales, offsets, self.intermediate, self.hidden, self.group)

    def gate_up(self, x: Rows, rows: Layout, slots: int, tiling: GroupedTiling) -> Rows:
        """See `stacked.Experts`."""
        assert isinstance(x, Tensor)
        inner, product, offsets = self.intermediate, tiling.gate_up, self.offsets_gate_up
        h = torch.empty(len(rows.pairs), inner, dtype=x.dtype, device=x.device)
        load_kernels(KERNELS).gate_up[(len(rows.experts) * -(-inner // product.block_weights),)](
            x, self.words_gate_up, self.scales_gate_up, self.scales_gate_up if offsets is None else offsets,
            rows.pairs, rows.experts, h, len(x) * slots, slots,
            H=self.hidden, INNER=inner, GROUP=self.group, ASYMMETRIC=offsets is not None,
            TILE=tiling.tile, BLOCK_N=product.block_weights,
            num_warps=product.num_warps, num_stages=product.num_stages,
        )  # fmt: skip
        return h

    def down(self, h: Rows, rows: Layout, pairs: int, tiling: GroupedTiling) -> Tensor:
        """See `stacked.Experts`."""
        assert isinstance(h, Tensor)
        hidden, product, offsets = self.hidden, tiling.down, self.offsets_down
        z = torch.empty(pairs, hidden, dtype=torch.bfloat16, device=h.device)
        load_kernels(KERNELS).down[(len(rows.experts) * -(-hidden // product.block_weights),)](
            h, self.words_down, self.scales_down, self.scales_down if offsets is None else offsets,
            rows.pairs, rows.experts, z, pairs,
            H=hidden, INNER=self.intermediate, GROUP=self.group, ASYMMETRIC=offsets is not None,
            TILE=tiling.tile, BLOCK_N=product.block_weights,
            num_warps=product.num_warps, num_stages=product.num_stages,
        )  # fmt: skip
        return z


def _pair(gate: PackedInt4, up: PackedInt4) -> tuple[Tensor, Tensor, Tensor | None]:
    """Words, scales and offsets of both, [2, ...]."""
    offsets = None if gate.offsets is None or up.offsets is None else torch.stack((gate.offsets, up.offsets))
    return torch.stack((gate.words, up.words)), torch.stack((gate.scales, up.scales)), offsets


def _stack(parts: Sequence[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.stack(present) if present else None

"""Stacked experts in block FP8: codes e4m3, one scale of any float type per 128 x 128 (smaller at an edge).

    gate_up   codes [E, 2I, H]: rows of gate, then of up      scales [E, 2, I/128, H/128]
    down      codes [E, H, I]                                 scales [E, H/128, I/128]

Gate and up have scale rows of their own, so that no block straddles both when I is no multiple of 128.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qconvert_kernels.errors import BadInput
from qconvert_kernels.fp8_gemm.naive import dequantize
from qconvert_kernels.grouped.routing import Layout
from qconvert_kernels.grouped.stacked import Activations, Rows, check_whole
from qconvert_kernels.grouped.tilings import GroupedTiling
from qconvert_kernels.launch import check, load_kernels
from qconvert_kernels.quantize_activations.naive import QuantizedActivations
from qconvert_kernels.tiling import BLOCK

CODE = torch.float8_e4m3fn
SCALE_TYPES = (torch.float32, torch.bfloat16)
KERNELS = "grouped.kernels_fp8"


def blocks(size: int) -> int:
    """How many blocks of 128 cover it."""
    return -(-size // BLOCK)


@dataclass(frozen=True)
class Fp8Experts:
    """`stacked.Experts`, W8A8 or W8A16."""

    codes_gate_up: Tensor
    scales_gate_up: Tensor
    codes_down: Tensor
    scales_down: Tensor

    def __post_init__(self) -> None:
        check("codes_gate_up", self.codes_gate_up, (-1, -1, -1), (CODE,))
        if self.codes_gate_up.shape[1] % 2:
            raise BadInput(f"codes_gate_up: expected gate and up, found {self.codes_gate_up.shape[1]} rows together")
        experts, hidden, inner = self.num_experts, self.hidden, self.intermediate
        check("scales_gate_up", self.scales_gate_up, (experts, 2, blocks(inner), blocks(hidden)), SCALE_TYPES)
        check("codes_down", self.codes_down, (experts, hidden, inner), (CODE,))
        check("scales_down", self.scales_down, (experts, blocks(hidden), blocks(inner)), SCALE_TYPES)
        check_whole(self)

    @classmethod
    def stack(
        cls, gate: Sequence[tuple[Tensor, Tensor]], up: Sequence[tuple[Tensor, Tensor]],
        down: Sequence[tuple[Tensor, Tensor]],
    ) -> Fp8Experts:  # fmt: skip
        """From codes and scales of each expert's three weights."""
        codes = torch.stack([torch.cat((g[0], u[0])) for g, u in zip(gate, up, strict=True)])
        scales = torch.stack([torch.stack((g[1], u[1])) for g, u in zip(gate, up, strict=True)])
        return cls(codes, scales, torch.stack([d[0] for d in down]), torch.stack([d[1] for d in down]))

    @property
    def num_experts(self) -> int:
        """E"""
        return self.codes_gate_up.shape[0]

    @property
    def hidden(self) -> int:
        """H"""
        return self.codes_gate_up.shape[2]

    @property
    def intermediate(self) -> int:
        """I"""
        return self.codes_gate_up.shape[1] // 2

    @property
    def some(self) -> Tensor:
        """One of the tensors."""
        return self.codes_gate_up

    def kind(self, activations: Activations) -> str:
        """Tilings differ for the two activations."""
        return {"none": "fp8_w8a16", "fp8-group128": "fp8_w8a8"}[activations]

    def expert(self, index: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
        """What one expert's codes stand for."""
        inner, codes = self.intermediate, self.codes_gate_up[index]
        scales = self.scales_gate_up[index]
        return (
            dequantize(codes[:inner], scales[0], dtype),
            dequantize(codes[inner:], scales[1], dtype),
            dequantize(self.codes_down[index], self.scales_down[index], dtype),
        )

    def gate_up(self, x: Rows, rows: Layout, slots: int, tiling: GroupedTiling) -> Rows:
        """See `stacked.Experts`."""
        inner, product = self.intermediate, tiling.gate_up
        values, scales = (x, self.scales_gate_up[0, 0]) if isinstance(x, Tensor) else x  # not read for BF16
        h = torch.empty(len(rows.pairs), inner, dtype=values.dtype, device=values.device)
        h_scales = torch.empty(len(rows.pairs), blocks(inner), device=values.device)
        load_kernels(KERNELS).gate_up[(len(rows.experts) * -(-inner // product.block_weights),)](
            values, scales, self.codes_gate_up, self.scales_gate_up, rows.pairs, rows.experts, h, h_scales,
            len(values) * slots, slots, *scales.stride(),
            H=self.hidden, INNER=inner, A8=not isinstance(x, Tensor), TILE=tiling.tile, BLOCK_N=product.block_weights,
            num_warps=product.num_warps, num_stages=product.num_stages,
        )  # fmt: skip
        return h if isinstance(x, Tensor) else QuantizedActivations(h, h_scales)

    def down(self, h: Rows, rows: Layout, pairs: int, tiling: GroupedTiling) -> Tensor:
        """See `stacked.Experts`."""
        hidden, product = self.hidden, tiling.down
        values, scales = (h, self.scales_down) if isinstance(h, Tensor) else h
        z = torch.empty(pairs, hidden, dtype=torch.bfloat16, device=values.device)
        load_kernels(KERNELS).down[(len(rows.experts) * -(-hidden // product.block_weights),)](
            values, scales, self.codes_down, self.scales_down, rows.pairs, rows.experts, z, pairs,
            H=hidden, INNER=self.intermediate, A8=not isinstance(h, Tensor),
            TILE=tiling.tile, BLOCK_N=product.block_weights,
            num_warps=product.num_warps, num_stages=product.num_stages,
        )  # fmt: skip
        return z

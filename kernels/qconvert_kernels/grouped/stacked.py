"""What the routed experts of one layer offer once they are stacked, in any number format; one module a format.

E experts of mlp(x) = down(silu(gate x) * up x): gate and up [I, H], down [H, I]. Stacking copies the numbers once, so
that one launch serves all experts.
"""

from __future__ import annotations

from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from qconvert_kernels.errors import BadInput
from qconvert_kernels.grouped.routing import Layout
from qconvert_kernels.grouped.tilings import GroupedTiling
from qconvert_kernels.launch import check_devices
from qconvert_kernels.quantize_activations.naive import QuantizedActivations

Activations: TypeAlias = Literal["none", "fp8-group128"]
Rows: TypeAlias = "Tensor | QuantizedActivations"  # BF16, or codes and scales


class Experts(Protocol):
    """Stacked experts."""

    @property
    def num_experts(self) -> int:
        """E"""
        ...

    @property
    def hidden(self) -> int:
        """H, the width of the model."""
        ...

    @property
    def intermediate(self) -> int:
        """I, the width of an expert."""
        ...

    @property
    def some(self) -> Tensor:
        """One of the tensors, which all lie on one device."""
        ...

    def kind(self, activations: Activations) -> str:
        """The name by which tilings are chosen; refuses activations that this format is not multiplied with."""
        ...

    def expert(self, index: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
        """Gate and up [I, H] and down [H, I] of one expert, decoded and not rounded."""
        ...

    def gate_up(self, x: Rows, rows: Layout, slots: int, tiling: GroupedTiling) -> Rows:
        """x of all tokens [T, H] -> silu(gate x) * (up x) for every row of the layout [B * tile, I], as x is."""
        ...

    def down(self, h: Rows, rows: Layout, pairs: int, tiling: GroupedTiling) -> Tensor:
        """h of all rows -> z of all pairs, BF16 [P, H]."""
        ...


def check_whole(experts: object) -> None:
    """All tensors of a stack lie on one device and in one piece: kernels compute their addresses from the sizes."""
    tensors = {name: value for name, value in vars(experts).items() if isinstance(value, Tensor)}
    check_devices(**tensors)
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise BadInput(f"{name}: expected a contiguous tensor, found strides {tensor.stride()}")

"""The routed experts of one layer, stacked: E experts of mlp(x) = down(silu(gate x) * up x), sizes H and I.

Fp8Experts      codes e4m3, scales of any float type, one per block of 128 x 128 (blocks at an edge may be smaller)

    gate_up   codes [E, 2I, H]: rows of gate, then of up      scales [E, 2, I/128, H/128]
    down      codes [E, H, I]                                 scales [E, H/128, I/128]

Gate and up keep their own scale rows, so that no block straddles both when I is no multiple of 128.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qconvert_kernels.errors import BadInput
from qconvert_kernels.fp8_gemm.naive import BLOCK, dequantize
from qconvert_kernels.launch import check

CODE = torch.float8_e4m3fn
SCALE_TYPES = (torch.float32, torch.bfloat16)

Quantized = tuple[Tensor, Tensor]  # codes [N, K], scales


def blocks(size: int) -> int:
    """How many blocks of 128 cover it."""
    return -(-size // BLOCK)


@dataclass(frozen=True)
class Fp8Experts:
    """See the module."""

    gate_up: Tensor
    gate_up_scales: Tensor
    down: Tensor
    down_scales: Tensor

    def __post_init__(self) -> None:
        check("gate_up", self.gate_up, (-1, -1, -1), (CODE,))
        if self.gate_up.shape[1] % 2:
            raise BadInput(f"gate_up: expected as many rows of gate as of up, found {self.gate_up.shape[1]} together")
        (experts, hidden, inner) = self.num_experts, self.hidden, self.intermediate
        check("gate_up_scales", self.gate_up_scales, (experts, 2, blocks(inner), blocks(hidden)), SCALE_TYPES)
        check("down", self.down, (experts, hidden, inner), (CODE,))
        check("down_scales", self.down_scales, (experts, blocks(hidden), blocks(inner)), SCALE_TYPES)
        check_whole(self)

    @classmethod
    def stack(cls, gate: Sequence[Quantized], up: Sequence[Quantized], down: Sequence[Quantized]) -> Fp8Experts:
        """From codes and scales of each expert's three weights; codes are copied once."""
        gate_up = torch.stack([torch.cat((g[0], u[0])) for g, u in zip(gate, up, strict=True)])
        scales = torch.stack([torch.stack((g[1], u[1])) for g, u in zip(gate, up, strict=True)])
        return cls(gate_up, scales, torch.stack([d[0] for d in down]), torch.stack([d[1] for d in down]))

    @property
    def num_experts(self) -> int:
        """E"""
        return self.gate_up.shape[0]

    @property
    def hidden(self) -> int:
        """H, the width of the model."""
        return self.gate_up.shape[2]

    @property
    def intermediate(self) -> int:
        """I, the width of an expert."""
        return self.gate_up.shape[1] // 2

    def expert(self, index: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
        """What one expert's codes stand for: gate and up [I, H], down [H, I]."""
        gate, up = self.gate_up[index].split(self.intermediate)
        scales = self.gate_up_scales[index]
        return (
            dequantize(gate, scales[0], dtype),
            dequantize(up, scales[1], dtype),
            dequantize(self.down[index], self.down_scales[index], dtype),
        )


def check_whole(experts: object) -> None:
    """All tensors of a stack lie on one device and in one piece: kernels compute their addresses from the sizes."""
    tensors = {name: value for name, value in vars(experts).items() if isinstance(value, Tensor)}
    devices = {tensor.device for tensor in tensors.values()}
    if len(devices) > 1:
        raise BadInput(f"experts: expected one device, found {', '.join(sorted(map(str, devices)))}")
    for name, tensor in tensors.items():
        if not tensor.is_contiguous():
            raise BadInput(f"{name}: expected a contiguous tensor, found strides {tensor.stride()}")

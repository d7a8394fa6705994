"""One thing to time: its inputs from a seed, the kernel's result, the truth, and the least it can cost.

`bytes` are those that must cross the memory bus at least once: weights with their scales, inputs, results. What a
kernel writes and reads in between is its own affair and not counted, so a share of the copy bandwidth is a share of the
best possible. Of experts only those count that some token was routed to. `flops` are 2 M N K a product.

`tolerance` bounds |y - truth| / |truth|. Rounding to bf16 costs at most 2^-8 of each number. The tensor core keeps 13
bits of a sum of e4m3 products and sums leave it every 128 of K: 2^-10 more at worst, on data of one sign. Codes of h
that fall on the other side of a middle add 2^-6 to FP8 experts (see the tests on a GPU).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from qconvert_kernels import int4_gemm

CODE = torch.float8_e4m3fn
BF16_STEP, FP8_SUM, MOVED_CODES = 2.0**-8, 2.0**-10, 2.0**-6


class Problem(Protocol):
    """What `measure` needs to know."""

    @property
    def kernel(self) -> str:
        """What computes it, as configurations call it."""
        ...

    @property
    def shape(self) -> str:
        """The sizes but for the tokens, in words."""
        ...

    @property
    def tokens(self) -> int:
        """M"""
        ...

    @property
    def bytes(self) -> int:
        """See the module."""
        ...

    @property
    def flops(self) -> int:
        """See the module."""
        ...

    @property
    def tolerance(self) -> float:
        """See the module; 0 where every bit must be equal."""
        ...

    @property
    def distinct(self) -> int | None:
        """Experts that some token was routed to, where there are any."""
        ...

    def inputs(self, device: torch.device, seed: int) -> Any:
        """A set of inputs, weights included."""
        ...

    def run(self, inputs: Any) -> Any:
        """The kernel: a tensor, or a tuple of them where every bit must be equal."""
        ...

    def truth(self, inputs: Any) -> Any:
        """The same in plain torch."""
        ...


def random(device: torch.device, seed: int, *shape: int) -> Tensor:
    """Normal numbers in bf16."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device).bfloat16()


def fp8_weight(device: torch.device, seed: int, n: int, k: int) -> tuple[Tensor, Tensor]:
    """codes e4m3 [N, K] up to 448, scales bf16 [N/128, K/128] that make weights of about 1 / sqrt(K)."""
    codes = (random(device, seed, n, k).float() * 100).clamp(-448, 448).to(CODE)
    scales = (0.5 + random(device, seed + 1, -(-n // 128), -(-k // 128)).float().abs()) / 100 / k**0.5
    return codes, scales.bfloat16()


def int4_weight(device: torch.device, seed: int, n: int, k: int, group: int) -> int4_gemm.PackedInt4:
    """Symmetric INT4, repacked for the kernel."""
    codes = (random(device, seed, n, k).float() * 3).round().clamp(-8, 7).to(torch.int8)
    scales = (0.5 + random(device, seed + 1, n, -(-k // group)).float().abs()) / 3 / k**0.5
    return int4_gemm.repack(codes, scales.bfloat16(), group=group)

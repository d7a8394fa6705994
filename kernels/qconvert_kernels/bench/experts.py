"""The routed experts of a layer, to be timed: how many are touched decides what it costs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from qconvert_kernels import grouped
from qconvert_kernels.bench.problem import BF16_STEP, MOVED_CODES, fp8_weight, int4_weight, random
from qconvert_kernels.bench.shapes import Experts
from qconvert_kernels.grouped import naive as grouped_naive
from qconvert_kernels.grouped.stacked import Activations


@dataclass(frozen=True)
class RoutedExperts:
    """All routed experts of a layer; `group` 0 is FP8. Routes fall evenly, or as a trained router's do: skewed."""

    sizes: Experts
    tokens: int
    group: int = 0
    activations: Activations = "none"
    skewed: bool = False

    @property
    def kernel(self) -> str:
        """As configurations call it."""
        if self.group:
            return "grouped_int4_w4a16"
        return "grouped_fp8_w8a16" if self.activations == "none" else "grouped_fp8_w8a8"

    @property
    def shape(self) -> str:
        one = self.sizes
        group = f" g{self.group}" if self.group else ""
        return f"{one.experts} experts {one.hidden}x{one.intermediate}{group}, {'skewed' if self.skewed else 'even'}"

    @cached_property
    def routes(self) -> tuple[Tensor, Tensor]:
        """experts int64 [T, k], different ones for a token; weights fp32 [T, k] that add up to 1."""
        generator = torch.Generator().manual_seed(0)
        scores = torch.randn(self.tokens, self.sizes.experts, generator=generator)
        if self.skewed:  # a standard deviation of 1 between experts: the busiest of 512 get ten times their share
            scores = scores + torch.randn(self.sizes.experts, generator=generator)
        weights, chosen = scores.softmax(-1).topk(self.sizes.slots, -1)
        return chosen, weights / weights.sum(-1, keepdim=True)

    @property
    def distinct(self) -> int:
        return int(torch.unique(self.routes[0]).numel())

    @property
    def bytes(self) -> int:
        h, i = self.sizes.hidden, self.sizes.intermediate
        weights = 3 * h * i
        if self.group:
            held = weights // 2 + 2 * (2 * i * -(-h // self.group) + h * -(-i // self.group))
        else:
            held = weights + 2 * 3 * -(-h // 128) * -(-i // 128)
        return self.distinct * held + 4 * self.tokens * h

    @property
    def flops(self) -> int:
        return 2 * self.tokens * self.sizes.slots * 3 * self.sizes.hidden * self.sizes.intermediate

    @property
    def tolerance(self) -> float:
        return BF16_STEP if self.activations == "none" else MOVED_CODES

    def inputs(self, device: torch.device, seed: int) -> Any:
        h, i, count = self.sizes.hidden, self.sizes.intermediate, self.sizes.experts
        shapes = ((i, h), (i, h), (h, i))
        x = random(device, seed, self.tokens, h)
        made: Any
        if self.group:
            parts = [
                [int4_weight(device, seed + 3 * e + p, *shape, self.group) for e in range(count)]
                for p, shape in enumerate(shapes)
            ]
            made = grouped.Int4Experts.stack(*parts)
        else:
            pairs = [
                [fp8_weight(device, seed + 3 * e + p, *shape) for e in range(count)] for p, shape in enumerate(shapes)
            ]
            made = grouped.Fp8Experts.stack(*pairs)
        chosen, weights = self.routes
        return x, chosen.to(device), weights.to(device), made

    def run(self, inputs: Any, **tiling: Any) -> Tensor:
        x, chosen, weights, stacked = inputs
        return grouped.moe(x, chosen, weights, stacked, self.activations, **tiling)

    def truth(self, inputs: Any) -> Tensor:
        x, chosen, weights, stacked = inputs
        return grouped_naive.moe(x, chosen, weights, stacked, self.activations)

"""Linear layers on FP8 and INT4 weights, to be timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qconvert_kernels import fp8_gemm, int4_gemm
from qconvert_kernels.bench.problem import BF16_STEP, FP8_SUM, fp8_weight, int4_weight, random
from qconvert_kernels.bench.shapes import Weight
from qconvert_kernels.fp8_gemm import naive as fp8_naive
from qconvert_kernels.int4_gemm import naive as int4_naive
from qconvert_kernels.quantize_activations import naive as activation


@dataclass(frozen=True)
class DenseFp8:
    """W8A8 (inputs quantized before) or W8A16."""

    weight: Weight
    tokens: int
    eight_bit_inputs: bool
    distinct: None = None

    @property
    def kernel(self) -> str:
        """As configurations call it."""
        return "fp8_w8a8" if self.eight_bit_inputs else "fp8_w8a16"

    @property
    def shape(self) -> str:
        return f"{self.weight.name} {self.weight.n}x{self.weight.k}"

    @property
    def bytes(self) -> int:
        n, k, m = self.weight.n, self.weight.k, self.tokens
        x = m * k + 4 * m * -(-k // 128) if self.eight_bit_inputs else 2 * m * k
        return n * k + 2 * -(-n // 128) * -(-k // 128) + x + 2 * m * n

    @property
    def flops(self) -> int:
        return 2 * self.tokens * self.weight.n * self.weight.k

    @property
    def tolerance(self) -> float:
        return BF16_STEP + (FP8_SUM if self.eight_bit_inputs else 0)

    def inputs(self, device: torch.device, seed: int) -> Any:
        x = random(device, seed, self.tokens, self.weight.k)
        quantized = activation.quantize(x) if self.eight_bit_inputs else x
        return quantized, *fp8_weight(device, seed + 1, self.weight.n, self.weight.k)

    def run(self, inputs: Any, **tiling: Any) -> Tensor:
        return fp8_gemm.fp8_block_gemm_nt(*inputs, **tiling)

    def truth(self, inputs: Any) -> Tensor:
        return fp8_naive.fp8_block_gemm_nt(*inputs, out_dtype=torch.float64, accumulate=torch.float64)


@dataclass(frozen=True)
class DenseInt4:
    """W4A16."""

    weight: Weight
    tokens: int
    group: int
    distinct: None = None
    kernel: str = "int4_w4a16"
    tolerance: float = BF16_STEP

    @property
    def shape(self) -> str:
        return f"{self.weight.name} {self.weight.n}x{self.weight.k} g{self.group}"

    @property
    def bytes(self) -> int:
        n, k, m = self.weight.n, self.weight.k, self.tokens
        return n * k // 2 + 2 * n * -(-k // self.group) + 2 * m * (n + k)

    @property
    def flops(self) -> int:
        return 2 * self.tokens * self.weight.n * self.weight.k

    def inputs(self, device: torch.device, seed: int) -> Any:
        x = random(device, seed, self.tokens, self.weight.k)
        return x, int4_weight(device, seed + 1, self.weight.n, self.weight.k, self.group)

    def run(self, inputs: Any, **tiling: Any) -> Tensor:
        return int4_gemm.int4_gemm_nt(*inputs, **tiling)

    def truth(self, inputs: Any) -> Tensor:
        return int4_naive.int4_gemm_nt(*inputs, out_dtype=torch.float64, accumulate=torch.float64)

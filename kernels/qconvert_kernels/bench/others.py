"""What stands around the products: quantizing activations and weights, and the gated delta rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qconvert_kernels import delta_rule, quantize_activations, quantize_weights
from qconvert_kernels.bench.problem import BF16_STEP, random
from qconvert_kernels.bench.shapes import Heads, Weight
from qconvert_kernels.delta_rule import naive as delta_naive
from qconvert_kernels.quantize_activations import naive as activation
from qconvert_kernels.quantize_weights import naive as weights_naive


@dataclass(frozen=True)
class QuantizeActivations:
    """Codes and scales of activations; `behind` is "", "rms_norm" or "silu_mul"."""

    width: int
    tokens: int
    behind: str = ""
    distinct: None = None
    flops: int = 0
    tolerance: float = 0.0

    @property
    def kernel(self) -> str:
        """The function's name."""
        return f"{self.behind}_quantize".lstrip("_")

    @property
    def shape(self) -> str:
        return str(self.width)

    @property
    def bytes(self) -> int:
        m, k = self.tokens, self.width
        read = {"": 2, "rms_norm": 2, "silu_mul": 4}[self.behind] * m * k
        kept = 2 * m * k if self.behind == "rms_norm" else 0
        return read + kept + m * k + 4 * m * -(-k // 128)

    def inputs(self, device: torch.device, seed: int) -> Any:
        x = random(device, seed, self.tokens, self.width)
        other = {"": (), "rms_norm": (self.width,), "silu_mul": (self.tokens, self.width)}[self.behind]
        return (x, random(device, seed + 1, *other)) if other else (x,)

    def run(self, inputs: Any) -> Tensor:
        return self._both(inputs)[0].codes.view(torch.uint8)

    def truth(self, inputs: Any) -> Tensor:
        """Codes of what the kernel itself rounded to bf16: the norm's last bit is nobody's contract."""
        kept = self._both(inputs)[1]
        return activation.quantize(inputs[0] if kept is None else kept).codes.view(torch.uint8)

    def _both(self, inputs: Any) -> tuple[activation.QuantizedActivations, Tensor | None]:
        if self.behind == "rms_norm":
            x, weight = inputs
            kept, codes = quantize_activations.rms_norm_quantize(x, weight, 1e-6)
            return codes, kept
        if self.behind == "silu_mul":
            kept, codes = quantize_activations.silu_mul_keep_quantize(*inputs)
            return codes, kept
        return quantize_activations.quantize(*inputs), None


@dataclass(frozen=True)
class QuantizeWeights:
    """A BF16 weight to FP8 (group 0) or INT4, codes and scales; `tokens` counts its rows. Every byte must be equal."""

    weight: Weight
    group: int = 0
    method: str = "rtn"
    distinct: None = None
    flops: int = 0
    tolerance: float = 0.0
    kernel: str = "quantize_weights"

    @property
    def shape(self) -> str:
        what = f"int4 g{self.group} {self.method}" if self.group else "fp8"
        return f"{self.weight.name} {self.weight.n}x{self.weight.k} to {what}"

    @property
    def tokens(self) -> int:
        return self.weight.n

    @property
    def bytes(self) -> int:
        n, k = self.weight.n, self.weight.k
        scales = n * -(-k // self.group) if self.group else -(-n // 128) * -(-k // 128)
        return 3 * n * k + 2 * scales

    def inputs(self, device: torch.device, seed: int) -> Any:
        return random(device, seed, self.weight.n, self.weight.k)

    def run(self, inputs: Any) -> quantize_weights.Quantized:
        if self.group:
            return quantize_weights.int4(inputs, self.group, method=self.method)
        return quantize_weights.fp8_block128(inputs)

    def truth(self, inputs: Any) -> quantize_weights.Quantized:
        if self.group:
            return weights_naive.int4(inputs, self.group, method=self.method)
        return weights_naive.fp8_block128(inputs)


@dataclass(frozen=True)
class DeltaRule:
    """`sequences` of `length` tokens each; a length of 1 is a decoding step. FLOPs are those of the recurrent form."""

    heads: Heads
    sequences: int
    length: int
    distinct: None = None
    kernel: str = "gated_delta_rule"

    @property
    def shape(self) -> str:
        return f"{self.sequences} sequences of {self.length}"

    @property
    def tokens(self) -> int:
        return self.sequences * self.length

    @property
    def bytes(self) -> int:
        one = self.heads
        numbers = 2 * one.key_heads * one.key_dim + 2 * one.value_heads * one.value_dim
        state = 2 * 4 * one.value_heads * one.key_dim * one.value_dim
        return self.tokens * (2 * numbers + 2 * 4 * one.value_heads) + self.sequences * state

    @property
    def flops(self) -> int:
        one = self.heads
        return self.tokens * one.value_heads * 7 * one.key_dim * one.value_dim

    @property
    def tolerance(self) -> float:
        """bf16 results; errors of fp32 sums, three TF32 products each of 2^-21, have room within its step."""
        return BF16_STEP

    def inputs(self, device: torch.device, seed: int) -> Any:
        one, b, t = self.heads, self.sequences, self.length
        q, k = (random(device, seed + n, b, t, one.key_heads, one.key_dim) for n in (0, 1))
        v = random(device, seed + 2, b, t, one.value_heads, one.value_dim)
        fade, beta = (random(device, seed + n, b, t, one.value_heads).float().sigmoid() for n in (3, 4))
        state = random(device, seed + 5, b, one.value_heads, one.key_dim, one.value_dim).float()
        return q, k, v, -0.1 * fade, beta, state

    def run(self, inputs: Any) -> Tensor:
        return delta_rule.gated_delta_rule(*inputs)[0]

    def truth(self, inputs: Any) -> Tensor:
        q, k, v, g, beta, state = inputs
        return delta_naive.gated_delta_rule(q, k, v, g, beta, state, torch.float64)[0]

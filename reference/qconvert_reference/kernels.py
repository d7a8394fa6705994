"""Which products run in Triton: `--kernels auto | torch | triton`, and the linear layers and experts that do.

    scheme          inputs          kernel
    fp8-block128    bf16            W8A16, weights widened in registers
    fp8-block128    fp8-group128    W8A8, inputs quantized per token and group of 128
    int4-g*         bf16            W4A16, from a layout that is packed anew at load

The gated delta rule runs in Triton too, in fp32 as in torch, for BF16 lanes that add in the plain order. Everything
else stays in torch: unquantized weights, other compute dtypes, INT4 weights with FP8 inputs. The experts of
a layer go through one grouped product when all of them are in one of these formats, else one by one. auto takes the
kernels where weights lie on a CUDA device that can run them; triton demands them, also in Triton's interpreter
(TRITON_INTERPRET=1), which is exact and very slow. Results differ from the torch layers' by the order of sums, and in
weight-only products by a rounding: torch rounds code times scale to the compute dtype, the kernels do not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

import torch
from torch import Tensor

from qconvert.errors import UserError
from qconvert_kernels import delta_rule, fp8_gemm, grouped, int4_gemm, launch
from qconvert_kernels.int4_gemm import PackedInt4
from qconvert_kernels.quantize_activations import quantize

if TYPE_CHECKING:
    from qconvert.schemes import QuantizedWeight
    from qconvert_reference.linear import Numerics

Kernels = Literal["torch", "triton"]
CHOICES = ("auto", "torch", "triton")
FP8, INT4 = "fp8-block128", "int4-g"
# q, k, v, g, beta and the state before to y and the state behind; q and k as they leave the convolution.
DeltaRule: TypeAlias = "Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]"


def choose_kernels(asked: str, device: torch.device | str = "cpu") -> Kernels:
    """What "auto", "torch" or "triton" comes to on a device; UserError where triton was demanded and cannot run."""
    if asked not in CHOICES:
        raise UserError("unknown kernels", expected=", ".join(CHOICES), found=asked)
    if asked == "torch":
        return "torch"
    why_not = launch.available(device)
    if asked == "triton" and why_not is not None:
        raise UserError(
            "the Triton kernels cannot run here", found=why_not, fix="leave --kernels out: torch computes the same"
        )
    on_gpu = torch.device(device).type == "cuda"
    return "triton" if why_not is None and (asked == "triton" or on_gpu) else "torch"


def fused_delta_rule(numerics: Numerics) -> DeltaRule | None:
    """The kernel for the gated delta rule, normalisation of q and k included; None where torch computes it."""
    return delta_rule.gated_delta_rule if _wanted(numerics) else None


def _wanted(numerics: Numerics) -> bool:
    return (
        numerics.kernels == "triton" and numerics.compute_dtype == torch.bfloat16 and numerics.accumulation == "plain"
    )


def input_of(weight: QuantizedWeight, numerics: Numerics) -> str | None:
    """How the kernel for this weight takes its inputs: "none" or "fp8-group128"; None where no kernel computes it."""
    if not _wanted(numerics):
        return None
    name = weight.scheme.name
    activations = numerics.activations_for(name)
    fits = (name == FP8 and activations in ("none", "fp8-group128")) or (
        name.startswith(INT4) and activations == "none"
    )
    return activations if fits else None


class KernelProduct:
    """y = x W^T for one quantized weight; x [..., K] bf16 -> y [..., N] bf16."""

    def __init__(self, weight: QuantizedWeight, activations: str) -> None:
        self.quantizes = activations == "fp8-group128"
        self.weight: PackedInt4 | tuple[Tensor, Tensor] = _numbers(weight)

    def __call__(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])  # [M, K]
        if isinstance(self.weight, PackedInt4):
            y = int4_gemm.int4_gemm_nt(rows, self.weight)
        else:
            y = fp8_gemm.fp8_block_gemm_nt(quantize(rows) if self.quantizes else rows, *self.weight)
        return y.view(*x.shape[:-1], y.shape[-1])


class GroupedExperts:
    """The routed experts of a layer in one product; `experts` are (gate, up, down) of each."""

    def __init__(self, experts: Sequence[Sequence[QuantizedWeight]], activations: str) -> None:
        self.activations = cast(Literal["none", "fp8-group128"], activations)
        parts = [[_numbers(weight) for weight in part] for part in zip(*experts, strict=True)]
        kind = grouped.Int4Experts if isinstance(parts[0][0], PackedInt4) else grouped.Fp8Experts
        self.stacked = kind.stack(*parts)  # type: ignore[arg-type]  # all parts are of the first one's kind

    def __call__(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """x [T, H] bf16, experts and weights [T, k] -> [T, H] bf16."""
        return grouped.moe(x, experts, weights, self.stacked, self.activations)


def group_experts(experts: Sequence[Sequence[object]], numerics: Numerics) -> GroupedExperts | None:
    """One product for all experts, given the numbers of their (gate, up, down); None where they must go one by one."""
    from qconvert.schemes import QuantizedWeight

    weights = [weight for expert in experts for weight in expert]
    if not weights or not all(isinstance(weight, QuantizedWeight) for weight in weights):
        return None
    numbers = cast("list[QuantizedWeight]", weights)
    activations = input_of(numbers[0], numerics)
    kinds = {(weight.scheme.name, weight.zeros is None, weight.scales.dtype) for weight in numbers}
    if activations is None or len(kinds) > 1:
        return None
    return GroupedExperts(cast("Sequence[Sequence[QuantizedWeight]]", experts), activations)


def _numbers(weight: QuantizedWeight) -> PackedInt4 | tuple[Tensor, Tensor]:
    """As the kernels hold them."""
    if weight.scheme.name == FP8:
        return weight.codes, weight.scales
    return int4_gemm.repack(weight.codes, weight.scales, weight.zeros, group=weight.scheme.block[1])

"""Linear layers in every precision, y = x W^T, W [N, K]; Qwen3-Next has no biases.

    dense          W as it is, in the compute dtype
    dequantizing   W = codes * scales, rounded once to the compute dtype (weight-only serving)
    W8A8, W4A8     x too becomes eight-bit numbers, one scale per token and group of 128 (block FP8) or per token
                   (W4A8); the product of both unrounded factors is accumulated in fp32 and rounded once, as kernels do,
                   save for the order

How a CPU multiplies BF16 factors is a choice between two ways to the same sums (`products`).

`accumulation="split"` adds the two halves of K separately: the same numbers in another order. Two runs that differ only
in this are the yardstick for "no difference" (the noise lane).

Fused kernels compute the same faster where there are some (`kernels`); these classes say what has to come out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from qconvert.errors import UserError
from qconvert_reference import products
from qconvert_reference.kernels import KernelProduct, Kernels, input_of
from qconvert_reference.products import WIDE, Products
from qconvert_reference.recording import record_input

if TYPE_CHECKING:
    from qconvert.schemes import QuantizedWeight

GROUP = 128
CODE = torch.float8_e4m3fn

# How a model asks for its weights: by the name in the BF16 checkpoint.
Load: TypeAlias = "Callable[[str], Tensor | QuantizedWeight]"


def load_tensor(load: Load, name: str) -> Tensor:
    """A weight that is never quantized (norms, convolution, embedding)."""
    weight = load(name)
    if not isinstance(weight, Tensor):
        raise UserError(
            "this tensor must not be quantized", where=name, expected="a plain tensor", found=weight.scheme.name
        )
    return weight


@dataclass(frozen=True)
class Numerics:
    """How a lane computes: dtype of activations and weights, activation quantization, order of accumulation.

    `activations` says what becomes of the inputs of quantized weights, of those alone whose scheme's name starts with
    `activations_of`: in a folder of INT4 and FP8 weights engines quantize the inputs of one kind only.

    `keep_dequantized=False` dequantizes at every call instead of once: slower, but a layer with hundreds of experts
    then needs memory for its codes and one dequantized weight only.

    `products` is how a CPU multiplies BF16 factors; "auto" looks what is fastest here, the others are the same
    everywhere.
    """

    compute_dtype: torch.dtype = torch.bfloat16
    activations: Literal["none", "fp8-group128", "fp8-token"] = "none"
    activations_of: str = ""
    accumulation: Literal["plain", "split"] = "plain"
    keep_dequantized: bool = True
    kernels: Kernels = "torch"
    products: Products = "bf16"

    def activations_for(self, scheme: str) -> str:
        """What becomes of the inputs of weights in this scheme."""
        return self.activations if scheme.startswith(self.activations_of) else "none"


class Shared:
    """x [..., K] that several linears read: what they all do to it first is done once."""

    def __init__(self, x: Tensor) -> None:
        self.x = x
        self._rounded: dict[int, Tensor] = {}

    @property
    def rows(self) -> int:
        """Vectors in x."""
        return self.x.numel() // max(1, self.x.shape[-1])

    @cached_property
    def wide(self) -> Tensor:
        """x in fp32."""
        return self.x.float()

    def rounded(self, group: int) -> Tensor:
        """x through eight bits."""
        if group not in self._rounded:
            self._rounded[group] = round_activations(self.x, group)
        return self._rounded[group]


class Linear:
    """y = x W^T; x [..., K] -> y [..., N] in the compute dtype. This class is the dense variant."""

    name = ""  # of its weight, for recordings

    def __init__(self, weight: Tensor, numerics: Numerics) -> None:
        self.numerics = numerics
        self._wide: Tensor | None = None  # the weight in fp32, once it is wanted and there is room
        self._may_keep: bool | None = None
        # Without gradients the conversion is done once; with them at every call, so that it is part of the graph.
        self._weight = weight if weight.requires_grad else weight.to(numerics.compute_dtype)

    def weight(self) -> Tensor:
        """W [N, K], in the dtype of the product."""
        return self._weight.to(self.numerics.compute_dtype)

    def input(self, x: Tensor | Shared) -> Tensor:
        """x as it enters the product, in the dtype of the weight."""
        return (x.x if isinstance(x, Shared) else x).to(self.numerics.compute_dtype)

    def __call__(self, x: Tensor | Shared) -> Tensor:
        shared = x if isinstance(x, Shared) else Shared(x)
        entering = self.input(shared)
        record_input(self.name, entering)
        return self._product(shared, entering, self.weight()).to(self.numerics.compute_dtype)

    def _product(self, shared: Shared, entering: Tensor, weight: Tensor) -> Tensor:
        """The sum in the order asked for: fp32, or rounded once already."""
        add = _split_product if self.numerics.accumulation == "split" else F.linear
        if not self._wants_fp32(weight, shared.rows):
            return add(entering, weight)  # BF16 factors too are accumulated in fp32 and rounded once
        wide = shared.wide if shared.x.dtype == weight.dtype else entering.float()
        if self._keeps(weight):
            return add(wide, self._widened(weight))
        return products.widened_product(wide, weight, add)

    def _wants_fp32(self, weight: Tensor, rows: int) -> bool:
        """Whether BF16 factors are to be widened; always where the halves of a sum are added in fp32."""
        if weight.dtype != torch.bfloat16 or weight.device.type != "cpu" or weight.requires_grad:
            return False
        if self.numerics.accumulation == "split":
            return True
        return products.choose(self.numerics.products, rows, self._keeps(weight)) == "fp32"

    def _keeps(self, weight: Tensor) -> bool:
        """Whether there is room for the weight in fp32; asked once."""
        if self._may_keep is None:
            self._may_keep = WIDE.ask(self, weight)
        return self._may_keep

    def _widened(self, weight: Tensor) -> Tensor:
        if self._wide is None:
            self._wide = weight.float()
        return self._wide


class DequantizingLinear(Linear):
    """Weight-only: W = codes * scales, rounded to the compute dtype as an engine would hold it."""

    weight_dtype: torch.dtype

    def __init__(self, weight: QuantizedWeight, numerics: Numerics) -> None:
        self.numerics = numerics
        self.weight_dtype = numerics.compute_dtype
        self.quantized = weight
        self._kept: Tensor | None = None
        self._wide, self._may_keep = None, None if numerics.keep_dequantized else False

    def weight(self) -> Tensor:
        if self._kept is not None:
            return self._kept
        weight = self.quantized.dequantize(self.weight_dtype)
        if self.numerics.keep_dequantized:
            self._kept = weight
        return weight


class EightBitInputLinear(DequantizingLinear):
    """Eight-bit activations against the unrounded weight, in fp32."""

    def __init__(self, weight: QuantizedWeight, numerics: Numerics) -> None:
        super().__init__(weight, numerics)
        self.weight_dtype = torch.float32
        self.group = GROUP if numerics.activations == "fp8-group128" else weight.shape[1]

    def input(self, x: Tensor | Shared) -> Tensor:
        return (x if isinstance(x, Shared) else Shared(x)).rounded(self.group)


class KernelLinear(DequantizingLinear):
    """The same in Triton; the plain weight is decoded for whoever asks, and then by the layer's own rule."""

    def __init__(self, weight: QuantizedWeight, numerics: Numerics) -> None:
        super().__init__(weight, numerics)
        activations = input_of(weight, numerics)
        assert activations is not None
        self.product = KernelProduct(weight, activations)

    def __call__(self, x: Tensor | Shared) -> Tensor:
        return self.product(super().input(x))


def make_linear(weight: Tensor | QuantizedWeight, numerics: Numerics) -> Linear:
    """The variant that fits the weight: dense for a tensor, else dequantizing, with eight-bit inputs if asked for."""
    if isinstance(weight, Tensor):
        return Linear(weight, numerics)
    if input_of(weight, numerics) is not None:
        return KernelLinear(weight, numerics)
    if numerics.activations_for(weight.scheme.name) != "none":
        return EightBitInputLinear(weight, numerics)
    return DequantizingLinear(weight, numerics)


def load_linear(load: Load, name: str, numerics: Numerics) -> Linear:
    """The variant that fits the weight of that name."""
    linear = make_linear(load(name), numerics)
    linear.name = name
    return linear


def _split_product(x: Tensor, weight: Tensor) -> Tensor:
    """The two halves of K accumulated apart in fp32, then added: fp32 [..., N]."""
    half = weight.shape[1] // 2
    x, weight = x.float(), weight.float()
    return F.linear(x[..., :half], weight[:, :half]) + F.linear(x[..., half:], weight[:, half:])


def round_activations(x: Tensor, group: int = GROUP) -> Tensor:
    """x [..., K] through e4m3 with one fp32 scale per token and `group` neighbours, as fp32 values.

    scale = largest magnitude of the group / largest e4m3 number; a group of zeros has scale 1. A last group may be
    shorter.
    """
    width = x.shape[-1]
    padded = F.pad(x.float(), (0, -width % group)) if width % group else x.float()
    groups = padded.reshape(*x.shape[:-1], -1, group)  # [..., K/group, group]
    limit = torch.finfo(CODE).max
    scale = groups.abs().amax(-1, keepdim=True) / limit
    scale = torch.where(scale == 0, 1.0, scale)
    rounded = nearest_codes((groups / scale).clamp_(-limit, limit)).mul_(scale)
    return rounded.reshape(padded.shape)[..., :width]


def nearest_codes(x: Tensor) -> Tensor:
    """The e4m3 number next to each fp32 x, |x| <= 448, ties to even: what a cast there and back gives, six times
    quicker on a CPU.

    A number 2^e m, 1 <= m < 2, has neighbours at multiples of 2^(e-3), and below 2^-6 at multiples of 2^-9. So has fp32
    around 1.5 * 2^(e+20): adding that and taking it away again rounds.
    """
    power = (x.view(torch.int32) & 0x7F800000).view(torch.float32).clamp_min_(2.0**-6)  # 2^e
    middle = power.mul_(1.5 * 2.0**20)
    return (x + middle).sub_(middle)

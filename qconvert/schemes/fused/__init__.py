"""Fused loops: what a scheme does in a dozen passes of torch over a weight, done in one, and without the interpreter's
lock, so that workers run side by side.

The plain code of a scheme is the specification; a loop gives the same bits. It is used for BF16 weights in the memory
of a CPU that are worth the start of numba (importing it takes half a second, compiling for the first time some more).
Before its first use a loop is held against the plain code on a sample of every kind of number: one that numba cannot
compile here, or that differs, is named in a warning and not used. Everything else goes the plain way: other types,
GPUs, small weights, a Python without numba.

`fused.<module>` of a scheme has its `quantize` and `squared_error` as functions of the scheme and their arguments.
numba is imported in these modules only, when a loop is first asked for.
"""

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor

from qconvert.schemes.scheme import QuantizedWeight, squared_error

SMALL = 1 << 18  # weights; fewer are not worth a loop's start
# "auto" is described above. Tests demand one way: "plain", or "fused" for weights of any size, failing where it cannot.
mode: Literal["auto", "plain", "fused"] = "auto"


class Plain(Protocol):
    """A scheme as far as loops need to know it. Equal schemes share a check."""

    @property
    def weighted(self) -> bool:
        """Whether `quantize` takes the importance of inputs as a second argument."""
        ...

    @property
    def plain(self) -> Callable[..., QuantizedWeight]:
        """The specification of `quantize`."""
        ...

    def __hash__(self) -> int: ...


class Loops(Protocol):
    """A module of this package."""

    def quantize(self, scheme: Any, weight: Tensor, importance: Tensor | None = None) -> QuantizedWeight:
        """As `Scheme.quantize`, of a BF16 weight on a CPU."""
        ...

    def squared_error(
        self, scheme: Any, weight: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None = None
    ) -> tuple[float, float]:
        """As `Scheme.squared_error`, of a BF16 weight on a CPU."""
        ...


def loops_for(scheme: Plain, module: str, weight: Tensor) -> Loops | None:
    """The module of a scheme's loops, if this weight may go through them."""
    if mode == "plain" or weight.dtype != torch.bfloat16 or weight.device.type != "cpu":
        return None
    if mode == "auto" and weight.numel() < SMALL:
        return None
    return _checked(scheme, module, mode == "fused")


@functools.cache
def _checked(scheme: Plain, module: str, demanded: bool) -> Loops | None:
    try:
        loops = cast(Loops, importlib.import_module(f"{__name__}.{module}"))
        _compare(scheme, loops)
    except Exception as error:  # whatever keeps numba from working on this machine
        if demanded:
            raise
        warnings.warn(f"converting without compiled loops, which takes longer: {error}", RuntimeWarning, stacklevel=2)
        return None
    return loops


def _compare(scheme: Plain, loops: Loops) -> None:
    """Raise unless both ways give the same bits of a sample."""
    weight = sample()
    importance = (torch.arange(weight.shape[1]).remainder(7.0),) if scheme.weighted else ()
    want, got = scheme.plain(weight, *importance), loops.quantize(scheme, weight, *importance)
    for part in ("codes", "scales", "zeros"):
        one, other = getattr(want, part), getattr(got, part)
        if one is not None and not torch.equal(one.view(torch.uint8), other.view(torch.uint8)):
            raise ArithmeticError(f"{part} of the compiled loop differ from those of the plain code")
    sums = loops.squared_error(scheme, weight, want.codes, want.scales, want.zeros)
    if sums != squared_error(weight, want.dequantize(torch.float32)):
        raise ArithmeticError("squared errors of the compiled loop differ from those of the plain code")


def sample() -> Tensor:
    """BF16 [140, 300]: ordinary rows, wide ones, one-sided ones, ties, zeros, subnormal and huge numbers."""
    generator = torch.Generator().manual_seed(0)
    normal, wide = torch.randn(2, 140, 300, generator=generator)
    weight = normal * 0.02
    weight[20:60] *= torch.exp2(4 * wide[20:60])
    weight[60:80] = weight[60:80].abs() - 0.001
    weight[80:100] = (normal[80:100] * 8).round() / 2  # quotients end in .5
    weight[100:110, ::2] = -0.0
    weight[110:120] *= 2.0**-125
    weight[120:125] *= 2.0**125
    weight[125:130] = 0
    sampled: Tensor = weight.bfloat16()
    return sampled

"""Where weights are quantized: on the CPU, or on a GPU that gives the same bytes.

Kernels are not the core's business. A room above may register functions under the entry-point group
`qconvert.quantizers`. Each says whether it quantizes on a device:

    offer(scheme name, settings, device)     None, or (its name, quantize, squared_errors)
    quantize(weight [N, K] on the device)    (codes, scales, zeros or None) there; a scale of NaN marks a block in which
                                             a weight is unusable, and its codes may be anything
    squared_errors(weight, codes, scales, zeros or None)     fp64 [2, N]: the sums over rows of `scheme.squared_error`

`settings` are the fields of the scheme. Where nobody offers anything, `Scheme.plain` runs on the device: the
specification is written so that it gives the same bits everywhere. Either way nothing is believed: before a device is
used, each scheme is held against the CPU on a sample of every kind of number, and a device that differs is refused.

One process: workers are threads, each with a stream of its own, and only pieces of a few megabytes are on the device.
Weights with statistics of their inputs (imatrix, gptq) stay on the CPU: their sums are not specified to the last bit.
"""

import threading
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import metadata
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from qconvert.errors import UserError, first_line
from qconvert.schemes import QuantizedWeight, Scheme, UnusableWeight
from qconvert.schemes.fused import sample
from qconvert.schemes.int4 import WEIGHTED
from qconvert.schemes.scheme import add_rows

GROUP = "qconvert.quantizers"
DEVICES = ("auto", "cpu", "cuda")
PLAIN = "plain torch"

Quantize: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor, Tensor | None]]
RowErrors: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
Offered: TypeAlias = tuple[str, Quantize, RowErrors]
Offer: TypeAlias = Callable[[str, Mapping[str, Any], torch.device], Offered | None]
Result: TypeAlias = tuple[QuantizedWeight, tuple[float, float]]  # numbers; sums of squares of errors and weights


class Quantizer(Protocol):
    """A piece of a weight [N, K] to its numbers, and how far off they are. Threads may call it at the same time."""

    @property
    def place(self) -> str:
        """What works, in words."""
        ...

    def __call__(self, scheme: Scheme, weight: Tensor) -> Result:
        """Raises UnusableWeight."""
        ...


class OnCpu:
    """As the scheme does it."""

    place = "cpu"

    def __call__(self, scheme: Scheme, weight: Tensor) -> Result:
        """Raises UnusableWeight."""
        numbers = scheme.quantize(weight)
        return numbers, numbers.squared_error(weight)


class OnDevice:
    """Pieces go to the device, their numbers come back."""

    def __init__(self, device: torch.device, schemes: Iterable[Scheme], offers: Sequence[Offer]) -> None:
        self.device = device
        self._offered = {scheme: offered for scheme in schemes if (offered := _first(offers, scheme, device))}
        self._own = threading.local()
        self._launching = threading.Lock()  # Triton compiles a kernel when it is first launched

    @property
    def place(self) -> str:
        """Device, its name, and what runs there."""
        name = f" {torch.cuda.get_device_name(self.device)}" if self.device.type == "cuda" else ""
        kinds = dict.fromkeys(name for name, *_ in self._offered.values())
        return f"{self.device}{name}, {', '.join(kinds) or PLAIN}"

    def offers(self, scheme: Scheme) -> bool:
        """Whether somebody has a kernel for the scheme."""
        return scheme in self._offered

    def __call__(self, scheme: Scheme, weight: Tensor) -> Result:
        """Raises UnusableWeight."""
        with self._stream():
            there = self._send(weight)
            numbers, sums = self._quantize(scheme, there)
            numbers = self._fetch(numbers)
        if bool(numbers.scales.isnan().any()):
            scheme.plain(weight)  # names the place
            raise ArithmeticError(f"{self.place} found a value that cannot be used where the CPU finds none")
        return numbers, sums

    def check(self, scheme: Scheme) -> None:
        """Raise a UserError unless the device gives the numbers of the CPU, to the last bit, and sees bad ones."""
        weight = sample()
        # Once more without huge numbers, in whose sum the errors of ordinary ones do not show; and as FP32 weights.
        for rows in (weight, weight[:60], weight[:60].float() * 1.0001):
            want = scheme.plain(rows)
            try:
                got, sums = self(scheme, rows)
            except (ArithmeticError, UnusableWeight) as error:
                raise self._differs(scheme, "checks of unusable values") from error
            for part in ("codes", "scales", "zeros"):
                one, other = getattr(got, part), getattr(want, part)
                if (one is None) != (other is None) or (one is not None and not _same_bytes(one, other)):
                    raise self._differs(scheme, part)
            if sums != want.squared_error(rows):
                raise self._differs(scheme, "squared errors")
        weight[129, 299] = float("nan")
        try:
            self(scheme, weight)
        except UnusableWeight:
            return
        raise self._differs(scheme, "checks of unusable values")

    def _differs(self, scheme: Scheme, part: str) -> UserError:
        return UserError(
            f"this device does not quantize as the CPU does: {part} of {scheme.name} differ on a sample",
            where=self.place,
            expected="the same bytes on every device",
            fix="give --device cpu, and find out why before you trust this device, driver or library with other work",
        )

    def _quantize(self, scheme: Scheme, weight: Tensor) -> Result:
        if scheme not in self._offered:
            numbers = scheme.plain(weight)
            return numbers, numbers.squared_error(weight)
        _, quantize, squared_errors = self._offered[scheme]
        with self._launching:
            parts = quantize(weight)
            sums = squared_errors(weight, *parts)
        errors, squares = sums.cpu()
        return QuantizedWeight(scheme, *parts), (add_rows(errors), add_rows(squares))

    def _stream(self) -> AbstractContextManager[object]:
        if self.device.type != "cuda":
            return nullcontext()
        if not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        return torch.cuda.stream(self._own.stream)

    def _send(self, weight: Tensor) -> Tensor:
        """Through pinned memory, so that the copy runs beside the work of other streams."""
        return weight.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else weight

    def _fetch(self, numbers: QuantizedWeight) -> QuantizedWeight:
        parts = [
            None if part is None else part.to("cpu", non_blocking=True)
            for part in (numbers.codes, numbers.scales, numbers.zeros)
        ]
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        codes, scales, zeros = parts
        assert codes is not None and scales is not None
        return QuantizedWeight(numbers.scheme, codes, scales, zeros)


def choose_quantizer(asked: str, schemes: Iterable[Scheme]) -> Quantizer:
    """The place to quantize by these schemes: "cpu", "cuda", or "auto": a GPU if there are kernels for all of them."""
    if asked not in DEVICES:
        raise UserError(f"unknown device {asked!r}", expected=", ".join(DEVICES), fix="give one as --device")
    schemes = tuple(schemes)
    calibrated = [method for scheme in schemes if (method := getattr(scheme, "method", None)) in WEIGHTED]
    if asked == "cpu":
        return OnCpu()
    if asked == "auto" and (calibrated or not torch.cuda.is_available()):
        return OnCpu()
    if calibrated:
        raise UserError(
            f"the method {calibrated[0]} runs on the CPU only",
            found=f"--device {asked}",
            fix="leave --device out, or give --method mse",
        )
    if not torch.cuda.is_available():
        raise UserError(
            "there is no CUDA device to quantize on",
            found=f"torch {torch.__version__}, {'built without CUDA' if torch.version.cuda is None else 'no GPU seen'}",
            fix="leave --device out, or give --device cpu; the output is the same",
        )
    quantizer = OnDevice(torch.device("cuda", torch.cuda.current_device()), schemes, find_offers())
    if asked == "auto" and not all(quantizer.offers(scheme) for scheme in schemes):
        return OnCpu()
    try:
        for scheme in schemes:
            quantizer.check(scheme)
    except UserError:
        raise
    except Exception as error:  # whatever keeps it from working: no memory left, no compiler, an old driver
        found = f"{type(error).__name__}: {first_line(error)}"
        if asked == "auto":
            warnings.warn(f"quantizing on the CPU, {quantizer.place} failed: {found}", RuntimeWarning, stacklevel=2)
            return OnCpu()
        raise UserError(
            "quantizing fails on this device", where=quantizer.place, found=found, fix="give --device cpu"
        ) from error
    return quantizer


def find_offers() -> list[Offer]:
    """All registered functions."""
    return [point.load() for point in metadata.entry_points(group=GROUP)]


def _first(offers: Sequence[Offer], scheme: Scheme, device: torch.device) -> Offered | None:
    found = (offer(scheme.name, vars(scheme), device) for offer in offers)
    return next((offered for offered in found if offered is not None), None)


def _same_bytes(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))

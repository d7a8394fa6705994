"""What every number format offers: numbers and scales from a weight, and the weight back.

A scheme is pure: it knows no file and no tensor name. A weight is [N, K]: N output rows, K inputs. Its rows are
quantized independently in steps of `row_step`, so that a caller may feed a huge matrix in slices and join the
results.

The same bits on every device. Besides IEEE arithmetic, one operation after the other, that takes care in three places:
torch divides by a Python number (or a 0-d tensor of a CPU) by multiplying with its rounded reciprocal on a GPU, so the
divisor is a tensor beside the dividend; powers of two come from bits, not from `pow`; and sums are either sums of
integers that are exact in any order, or written out in an order of their own, because torch's differs by device.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

ERROR_LANES = 128  # sums of squared errors in a row
CPU_CHUNK = 1 << 16  # values at a time: 256 KB in fp32, so that all passes over them stay in the cache of a core
DEVICE_CHUNK = 1 << 24  # elsewhere: 64 MB in fp32, so that a pass takes longer than its launch


class UnusableWeight(ValueError):
    """A weight holds a value that no finite code can stand for. The caller knows the tensor, we know the place."""

    def __init__(self, row: int, column: int, value: float) -> None:
        super().__init__(f"[{row}, {column}] is {value}")
        self.row, self.column, self.value = row, column, value


class Scheme(Protocol):
    """A number format for 2-D weights."""

    @property
    def name(self) -> str:
        """Public name, as given to --scheme."""
        ...

    @property
    def row_step(self) -> int:
        """Slices of a weight that start at multiples of this many rows quantize to slices of the whole result."""
        ...

    @property
    def block(self) -> tuple[int, int]:
        """Rows and columns of a weight that share a scale."""
        ...

    def quantize(self, weight: Tensor) -> "QuantizedWeight":
        """Weight [N, K] of any float type to codes and scales. Raises UnusableWeight."""
        ...

    def plain(self, weight: Tensor) -> "QuantizedWeight":
        """`quantize` as its specification has it, on the weight's device; the same bits on each."""
        ...

    def dequantize(
        self, codes: Tensor, scales: Tensor, zeros: Tensor | None = None, dtype: torch.dtype = torch.bfloat16
    ) -> Tensor:
        """Codes and scales back to a weight [N, K], one product in fp32 and one cast."""
        ...

    def squared_error(
        self, weight: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor | None = None
    ) -> tuple[float, float]:
        """What `squared_error` of this module gives for the weight and what codes and scales stand for in fp32."""
        ...

    def layout(self, shape: tuple[int, int]) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Parts ("codes", "scales", "zeros") to (safetensors type, shape), from the weight's shape alone."""
        ...

    def bound(self, weight: Tensor, scales: Tensor, zeros: Tensor | None = None) -> Tensor:
        """The largest |dequantized in fp32 - weight| that this format allows, elementwise [N, K]."""
        ...

    def doubts(self, codes: Tensor, scales: Tensor, zeros: Tensor | None = None) -> list[str]:
        """What is wrong with stored numbers at first sight, without their source; for any slice of whole row steps."""
        ...


def relative_error(error: float, signal: float) -> float:
    """||W' - W|| / ||W|| from sums of `squared_error`, added up over slices if need be; 0 for a weight of zeros."""
    return math.sqrt(error / signal) if signal else 0.0


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight in a scheme's numbers. `scales` multiply the codes; `zeros` exist for asymmetric formats only."""

    scheme: Scheme
    codes: Tensor
    scales: Tensor
    zeros: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """[N, K] of the weight that the codes stand for (one code per weight in every scheme so far)."""
        return self.codes.shape[0], self.codes.shape[1]

    def rows(self, start: int, stop: int) -> "QuantizedWeight":
        """Rows start..stop, which begin at a multiple of the scheme's row step."""
        step = self.scheme.row_step
        first, last = start // step, -(-stop // step)
        zeros = None if self.zeros is None else self.zeros[first:last]
        return QuantizedWeight(self.scheme, self.codes[start:stop], self.scales[first:last], zeros)

    def to(self, device: torch.device) -> "QuantizedWeight":
        """The same numbers on a device."""
        zeros = None if self.zeros is None else self.zeros.to(device)
        return QuantizedWeight(self.scheme, self.codes.to(device), self.scales.to(device), zeros)

    def dequantize(self, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """The weight [N, K] that these numbers stand for."""
        return self.scheme.dequantize(self.codes, self.scales, self.zeros, dtype)

    def squared_error(self, weight: Tensor) -> tuple[float, float]:
        """Sums of squares of errors against the weight [N, K] and of the weight; see the module's `squared_error`."""
        return self.scheme.squared_error(weight, self.codes, self.scales, self.zeros)


def squared_error(weight: Tensor, decoded: Tensor) -> tuple[float, float]:
    """sum((decoded - weight)^2) and sum(weight^2) of [N, K], in fp64.

    The order of additions is part of the definition, so that the sums are the same everywhere. In each row, columns
    that stand 128 apart are added one after the other; then one half of the 128 sums is added to the other until one
    number is left; then row is added to row.
    """
    exact = weight.double()
    error = decoded.double() - exact
    return add_rows(_row_sums(error * error)), add_rows(_row_sums(exact * exact))


def add_rows(sums: Tensor) -> float:
    """The sum of [N], one number after the other: on the CPU, since a GPU scans in parallel."""
    return float(sums.cpu().cumsum(0)[-1]) if len(sums) else 0.0


def chunk_of(device: torch.device) -> int:
    """Values to work on at a time."""
    return CPU_CHUNK if device.type == "cpu" else DEVICE_CHUNK


def _row_sums(numbers: Tensor) -> Tensor:
    """[N, K] to [N]."""
    lanes = numbers.new_zeros(len(numbers), ERROR_LANES)
    for start in range(0, numbers.shape[1], ERROR_LANES):
        part = numbers[:, start : start + ERROR_LANES]
        lanes[:, : part.shape[1]] += part
    while lanes.shape[1] > 1:
        lanes = lanes[:, : lanes.shape[1] // 2] + lanes[:, lanes.shape[1] // 2 :]
    return lanes[:, 0]

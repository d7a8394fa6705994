"""Converting one shard: every tensor flows through the scheme into its place, a few megabytes at a time.

A tensor is the work of one thread, a shard that of any number of them.
"""

import math
import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qconvert.checkpoint import Checkpoint, ShardWriter
from qconvert.errors import UserError
from qconvert.plan import PLAIN, ShardJob, TensorJob
from qconvert.schemes import Scheme, UnusableWeight, get_scheme

PIECE_BYTES = 4 * 2**20  # of source data in memory at a time, or the scheme's row step if that is more


class Conversion:
    """One output file in the making: `convert` each tensor of its job, then `finish` it, or `discard` it on the way."""

    def __init__(self, checkpoint: Checkpoint, job: ShardJob, path: Path, scales: str) -> None:
        self.checkpoint, self.job, self.scales = checkpoint, job, scales
        self.path = path
        self._writer = ShardWriter(path, job.specs)
        self._missing = len(job.tensors)
        self._lock = threading.Lock()

    def convert(self, tensor: TensorJob) -> None:
        """Write one tensor and what belongs to it. Threads may do so at the same time."""
        if tensor.scheme is None:
            _keep(self.checkpoint, tensor, self._writer)
        elif tensor.action == "quantize":
            _quantize(self.checkpoint, tensor, self._writer, get_scheme(tensor.scheme, scales=self.scales))
        else:
            _dequantize(self.checkpoint, tensor, self._writer, get_scheme(tensor.scheme, scales=self.scales))

    def was_last(self) -> bool:
        """Called once after each tensor: true for the one call after which nothing is missing."""
        with self._lock:
            self._missing -= 1
            return self._missing == 0

    def bytes_read(self, tensor: TensorJob) -> int:
        """Bytes of the source that a tensor is made from."""
        return sum(self.checkpoint.tensors[name].nbytes for name in tensor.inputs.values())

    def finish(self) -> dict[str, Any]:
        """Publish the file; the record of it."""
        sha256 = self._writer.publish_hashed()
        read = sum(self.bytes_read(tensor) for tensor in self.job.tensors)
        return {"bytes": self.path.stat().st_size, "sha256": sha256, "bytes_read": read}

    def discard(self) -> None:
        """Leave no file behind."""
        self._writer.discard()


def _keep(checkpoint: Checkpoint, tensor: TensorJob, writer: ShardWriter) -> None:
    """Copy the bytes. A NaN is as fatal here as in a quantized weight, so it is looked for here, too."""
    shape, offset = checkpoint.tensors[tensor.name].shape, 0
    for piece in checkpoint.read_flat(tensor.name, PIECE_BYTES):
        if piece.is_floating_point() and piece.itemsize > 1 and not _all_finite(piece):
            first = int((~torch.isfinite(piece)).nonzero()[0])
            index = torch.unravel_index(torch.tensor(offset + first), shape)
            raise _unusable(tensor.name, [int(position) for position in index], float(piece[first]))
        writer.append(tensor.name, piece)
        offset += piece.numel()


def _all_finite(piece: Tensor) -> bool:
    """Maximum and minimum show every NaN and infinity, many times as fast as looking at each number."""
    lowest, highest = piece.aminmax()
    return math.isfinite(float(lowest)) and math.isfinite(float(highest))


def _quantize(checkpoint: Checkpoint, tensor: TensorJob, writer: ShardWriter, scheme: Scheme) -> None:
    rows, columns = checkpoint.tensors[tensor.name].shape
    step = _row_step(scheme, columns)
    for start in range(0, rows, step):
        weight = checkpoint.read_rows(tensor.name, start, start + step)  # [step, K]
        try:
            numbers = scheme.quantize(weight)
        except UnusableWeight as error:
            raise _unusable(tensor.name, [start + error.row, error.column], error.value) from error
        writer.append(tensor.outputs["codes"].name, numbers.codes)
        writer.append(tensor.outputs["scales"].name, numbers.scales)


def _dequantize(checkpoint: Checkpoint, tensor: TensorJob, writer: ShardWriter, scheme: Scheme) -> None:
    rows, columns = tensor.outputs[PLAIN].shape
    step = _row_step(scheme, columns)
    for start in range(0, rows, step):
        codes = checkpoint.read_rows(tensor.inputs["codes"], start, start + step)  # [step, K]
        first = start // scheme.row_step  # a row of scales belongs to each step of rows
        scales = checkpoint.read_rows(tensor.inputs["scales"], first, first + step // scheme.row_step)
        writer.append(tensor.name, scheme.dequantize(codes, scales))


def _row_step(scheme: Scheme, columns: int) -> int:
    """Rows per piece: about PIECE_BYTES of BF16, in whole steps of the scheme."""
    return max(1, PIECE_BYTES // (2 * columns) // scheme.row_step) * scheme.row_step


def _unusable(name: str, index: list[int], value: float) -> UserError:
    return UserError(
        f"{name} holds a value that no model can use",
        where=f"position {index}",
        expected="a finite number of magnitude at most 2^127",
        found=str(value),
        fix="mend the checkpoint; a damaged download is the usual cause",
    )

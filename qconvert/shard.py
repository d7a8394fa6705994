"""Converting one shard: every tensor flows through the scheme into its place, a few megabytes at a time.

A tensor is the work of one thread, a shard that of any number of them. Where a format packs, the integers of one weight
are in memory as a whole: a quarter of its size in FP32.
"""

import math
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qconvert.calibrated import Statistics, quantize_calibrated
from qconvert.checkpoint import Checkpoint, ShardWriter
from qconvert.errors import UserError
from qconvert.formats import Format, StoredWeight, UnreadableNumbers, format_of, get_format
from qconvert.formats.weights import OTHER_FORMAT, join_rows, load_rows, load_stored
from qconvert.plan import PLAIN, ShardJob, TensorJob
from qconvert.quantizers import OnCpu, Quantizer
from qconvert.schemes import QuantizedWeight, Scheme, UnusableWeight, get_scheme, relative_error
from qconvert.schemes.int4 import Int4
from qconvert.tensor_report import TensorRow

PIECE_BYTES = 4 * 2**20  # of source data in memory at a time, or the scheme's row step if that is more


class Conversion:
    """One output file in the making: `convert` each tensor of its job, then `finish` it, or `discard` it on the way."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        job: ShardJob,
        path: Path,
        recipe: Mapping[str, Any],
        quantizer: Quantizer | None = None,
    ) -> None:
        self.checkpoint, self.job, self.recipe = checkpoint, job, recipe
        self.path, self.quantizer = path, quantizer or OnCpu()
        self._reading = format_of(checkpoint.config)
        self._writer = ShardWriter(path, job.specs)
        self._missing = len(job.tensors)
        self._rows: dict[str, TensorRow] = {}
        self._lock = threading.Lock()

    def convert(self, tensor: TensorJob, statistics: Statistics | None = None) -> None:
        """Write one tensor and what belongs to it; `statistics` of its inputs for a calibrated method. Threads may do
        so at the same time."""
        if tensor.scheme is None:
            _keep(self.checkpoint, tensor, self._writer)
        elif tensor.action == "quantize":
            scheme = get_scheme(tensor.scheme, **self.recipe["schemes"][tensor.scheme])
            layout = get_format(self.recipe["format"]).configured(scheme)
            source = self.checkpoint, tensor, self._writer
            if statistics is None:
                row = _quantize(*source, scheme, layout, self.quantizer)
            else:
                assert isinstance(scheme, Int4)
                row = _calibrated(*source, scheme, layout, statistics)
            self._rows[tensor.name] = row
        else:
            self._from_quantized(tensor)

    def _from_quantized(self, tensor: TensorJob) -> None:
        assert self._reading is not None
        stored = self._reading.find(tensor.name, self.checkpoint.tensors)
        assert stored is not None
        if tensor.action == "dequantize":
            _dequantize(self.checkpoint, tensor, self._writer, self._reading, stored)
        else:
            layout = get_format(self.recipe["format"]).configured(stored.scheme)
            _repack(self.checkpoint, tensor, self._writer, self._reading, layout, stored)

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
        rows = [self._rows[tensor.name].to_json() for tensor in self.job.tensors if tensor.name in self._rows]
        return {"bytes": self.path.stat().st_size, "sha256": sha256, "bytes_read": read, "tensors": rows}

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


def _quantize(
    checkpoint: Checkpoint,
    tensor: TensorJob,
    writer: ShardWriter,
    scheme: Scheme,
    layout: Format,
    quantizer: Quantizer,
) -> TensorRow:
    rows, columns = checkpoint.tensors[tensor.name].shape
    step = _row_step(scheme, columns)
    stripes = []
    error = signal = 0.0
    for start in range(0, rows, step):
        weight = checkpoint.read_rows(tensor.name, start, start + step)  # [step, K]
        try:
            numbers, (wrong, right) = quantizer(scheme, weight)
        except UnusableWeight as unusable:
            raise _unusable(tensor.name, [start + unusable.row, unusable.column], unusable.value) from unusable
        error, signal = error + wrong, signal + right
        if layout.is_striped(scheme):
            _write(writer, tensor, layout.pack(numbers))
        else:
            stripes.append(numbers)
    if stripes:
        _pack(writer, tensor, layout, join_rows(stripes))
    method = getattr(scheme, "method", "rtn")
    return TensorRow(tensor.name, scheme.name, method, None, relative_error(error, signal))


def _calibrated(
    checkpoint: Checkpoint,
    tensor: TensorJob,
    writer: ShardWriter,
    scheme: Int4,
    layout: Format,
    statistics: Statistics,
) -> TensorRow:
    """A weight as a whole: what is rounded last depends on all that was rounded before."""
    weight = checkpoint.read(tensor.name)
    try:
        done = quantize_calibrated(weight, scheme, statistics)
    except UnusableWeight as unusable:
        raise _unusable(tensor.name, [unusable.row, unusable.column], unusable.value) from unusable
    _pack(writer, tensor, layout, done.numbers)
    error = relative_error(*done.numbers.squared_error(weight))
    return TensorRow(tensor.name, scheme.name, done.method, done.tokens, error, done.note)


def _dequantize(
    checkpoint: Checkpoint, tensor: TensorJob, writer: ShardWriter, reading: Format, stored: StoredWeight
) -> None:
    rows, columns = tensor.outputs[PLAIN].shape
    step = _row_step(stored.scheme, columns)
    whole = None
    if not reading.is_striped(stored.scheme):
        whole = load_stored(checkpoint, reading, tensor.name, stored)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        numbers = load_rows(checkpoint, stored, start, stop) if whole is None else whole.rows(start, stop)
        writer.append(tensor.name, numbers.dequantize())


def _repack(
    checkpoint: Checkpoint,
    tensor: TensorJob,
    writer: ShardWriter,
    reading: Format,
    layout: Format,
    stored: StoredWeight,
) -> None:
    """The same numbers in another format."""
    _pack(writer, tensor, layout, load_stored(checkpoint, reading, tensor.name, stored))


def _pack(writer: ShardWriter, tensor: TensorJob, layout: Format, numbers: QuantizedWeight) -> None:
    try:
        parts = layout.pack(numbers)
    except UnreadableNumbers as error:
        raise UserError(f"{tensor.name} cannot be stored as {layout.name}: {error}", fix=OTHER_FORMAT) from error
    _write(writer, tensor, parts)


def _write(writer: ShardWriter, tensor: TensorJob, parts: Mapping[str, Tensor]) -> None:
    for part, data in parts.items():
        writer.append(tensor.outputs[part].name, data)


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

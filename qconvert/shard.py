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

from qconvert.checkpoint import Checkpoint, ShardWriter
from qconvert.errors import UserError
from qconvert.formats import Format, StoredWeight, UnreadableNumbers, format_of, get_format
from qconvert.formats.weights import OTHER_FORMAT, join_rows, load_rows, load_stored, slice_rows
from qconvert.plan import PLAIN, ShardJob, TensorJob
from qconvert.schemes import QuantizedWeight, Scheme, UnusableWeight, get_scheme

PIECE_BYTES = 4 * 2**20  # of source data in memory at a time, or the scheme's row step if that is more


class Conversion:
    """One output file in the making: `convert` each tensor of its job, then `finish` it, or `discard` it on the way."""

    def __init__(self, checkpoint: Checkpoint, job: ShardJob, path: Path, recipe: Mapping[str, Any]) -> None:
        self.checkpoint, self.job, self.recipe = checkpoint, job, recipe
        self.path = path
        self._reading = format_of(checkpoint.config)
        self._writer = ShardWriter(path, job.specs)
        self._missing = len(job.tensors)
        self._lock = threading.Lock()

    def convert(self, tensor: TensorJob) -> None:
        """Write one tensor and what belongs to it. Threads may do so at the same time."""
        if tensor.scheme is None:
            _keep(self.checkpoint, tensor, self._writer)
        elif tensor.action == "quantize":
            options = {key: self.recipe[key] for key in ("scales", "method", "asymmetric") if key in self.recipe}
            scheme = get_scheme(tensor.scheme, **options)
            layout = get_format(self.recipe["format"]).configured(scheme)
            _quantize(self.checkpoint, tensor, self._writer, scheme, layout)
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


def _quantize(checkpoint: Checkpoint, tensor: TensorJob, writer: ShardWriter, scheme: Scheme, layout: Format) -> None:
    rows, columns = checkpoint.tensors[tensor.name].shape
    step = _row_step(scheme, columns)
    stripes = []
    for start in range(0, rows, step):
        weight = checkpoint.read_rows(tensor.name, start, start + step)  # [step, K]
        try:
            numbers = scheme.quantize(weight)
        except UnusableWeight as error:
            raise _unusable(tensor.name, [start + error.row, error.column], error.value) from error
        if layout.is_striped(scheme):
            _write(writer, tensor, layout.pack(numbers))
        else:
            stripes.append(numbers)
    if stripes:
        _pack(writer, tensor, layout, join_rows(stripes))


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
        numbers = load_rows(checkpoint, stored, start, stop) if whole is None else slice_rows(whole, start, stop)
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

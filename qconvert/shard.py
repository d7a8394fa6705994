"""Converting one shard: every tensor flows through the scheme into its place, a few megabytes at a time. Where a format
packs, the integers of one weight are in memory as a whole: a quarter of its size in FP32."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qconvert.checkpoint import Checkpoint, ShardWriter
from qconvert.errors import UserError
from qconvert.formats import Format, StoredWeight, UnreadableNumbers, format_of, get_format
from qconvert.formats.weights import join_rows, load_rows, load_stored, slice_rows
from qconvert.plan import PLAIN, ShardJob, TensorJob
from qconvert.schemes import QuantizedWeight, Scheme, UnusableWeight, get_scheme

PIECE_BYTES = 4 * 2**20  # of source data in memory at a time, or the scheme's row step if that is more


def convert_shard(
    checkpoint: Checkpoint, job: ShardJob, path: Path, recipe: Mapping[str, Any], advance: Callable[[int], None]
) -> None:
    """Write one output file. `advance` is told the number of source bytes after each tensor, and may raise to stop."""
    reading = format_of(checkpoint.config)
    with ShardWriter(path, job.specs) as writer:
        for tensor in job.tensors:
            if tensor.scheme is None:
                _keep(checkpoint, tensor, writer)
            elif tensor.action == "quantize":
                options = {key: recipe[key] for key in ("scales", "method", "asymmetric") if key in recipe}
                scheme = get_scheme(tensor.scheme, **options)
                _quantize(checkpoint, tensor, writer, scheme, get_format(recipe["format"]).configured(scheme))
            else:
                assert reading is not None
                stored = reading.find(tensor.name, checkpoint.tensors)
                assert stored is not None
                if tensor.action == "dequantize":
                    _dequantize(checkpoint, tensor, writer, reading, stored)
                else:
                    layout = get_format(recipe["format"]).configured(stored.scheme)
                    _repack(checkpoint, tensor, writer, reading, layout, stored)
            advance(sum(checkpoint.tensors[name].nbytes for name in tensor.inputs.values()))


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
    """Maximum and minimum show every NaN and infinity, five times as fast as looking at each number."""
    return math.isfinite(float(piece.amax())) and math.isfinite(float(piece.amin()))


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
        raise UserError(
            f"{tensor.name} cannot be stored as {layout.name}: {error}", fix="give another --format"
        ) from error
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

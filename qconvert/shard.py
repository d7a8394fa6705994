"""Converting one shard: every tensor flows through the scheme into its place, a few megabytes at a time."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from qconvert.checkpoint import Checkpoint, ShardWriter
from qconvert.errors import UserError
from qconvert.plan import PLAIN, ShardJob, TensorJob
from qconvert.schemes import Scheme, UnusableWeight, get_scheme

PIECE_BYTES = 4 * 2**20  # of source data in memory at a time, or the scheme's row step if that is more


def convert_shard(
    checkpoint: Checkpoint, job: ShardJob, path: Path, scales: str, advance: Callable[[int], None]
) -> None:
    """Write one output file. `advance` is told the number of source bytes after each tensor, and may raise to stop."""
    with ShardWriter(path, job.specs) as writer:
        for tensor in job.tensors:
            if tensor.scheme is None:
                _keep(checkpoint, tensor, writer)
            elif tensor.action == "quantize":
                _quantize(checkpoint, tensor, writer, get_scheme(tensor.scheme, scales=scales))
            else:
                _dequantize(checkpoint, tensor, writer, get_scheme(tensor.scheme, scales=scales))
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

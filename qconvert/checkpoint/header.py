"""The header of a safetensors file: 8 bytes little-endian length, JSON, then the tensors' bytes without gaps.

    {"__metadata__": {"format": "pt"}, "name": {"dtype": "BF16", "shape": [N, K], "data_offsets": [begin, end]}, ...}

Offsets count from the end of the header. We read the header ourselves instead of through the safetensors library, which
gives no byte ranges to copy and to stream by, takes a name that appears twice, and refuses a damaged file without its
name. Every length is checked before anything is allocated by it.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from qconvert.errors import UserError

MAX_HEADER_BYTES = 100_000_000  # the safetensors library draws the line there, too
TORCH_TYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
}
TYPE_CODES = {torch_type: code for code, torch_type in TORCH_TYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: type code, shape, file name and absolute byte range in it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: str
    begin: int
    end: int

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return self.end - self.begin

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class TensorSpec(NamedTuple):
    """A tensor that is still to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * TORCH_TYPES[self.dtype].itemsize


def read_header(path: Path, shard: str) -> list[TensorInfo]:
    """All tensors of one shard in the order of their bytes. Refuses whatever does not describe the file exactly."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > MAX_HEADER_BYTES or 8 + length > size:
            raise _damaged(
                shard, f"a header of at most {MAX_HEADER_BYTES} bytes inside the file", f"{size} bytes in all"
            )
        text = file.read(length)
    try:
        entries = json.loads(text, object_pairs_hook=_no_duplicates)
        _check_metadata(entries.pop("__metadata__", None))
        tensors = [_entry(name, entry, shard, 8 + length) for name, entry in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(shard, "a safetensors header", str(error)) from error
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    _check_ranges(tensors, shard, 8 + length, size)
    return tensors


def build_header(specs: Iterable[TensorSpec], file: str) -> tuple[bytes, dict[str, TensorInfo]]:
    """The first bytes of a file that will hold these tensors in this order, and where each of them goes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec in specs:
        header[spec.name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [offset, offset + spec.nbytes],
        }
        offset += spec.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of 8 bytes
    start = 8 + len(text)
    del header["__metadata__"]
    return len(text).to_bytes(8, "little") + text, {
        name: _entry(name, entry, file, start) for name, entry in header.items()
    }


def _entry(name: str, entry: dict[str, Any], shard: str, start: int) -> TensorInfo:
    shape = tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if entry["dtype"] not in TORCH_TYPES:
        raise ValueError(f"{name} has the unknown type {entry['dtype']}")
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"{name} has a shape or an offset that is no natural number")
    if end - begin != TensorSpec(name, entry["dtype"], shape).nbytes:
        raise ValueError(f"{name} has {end - begin} bytes, which is not what {entry['dtype']} {list(shape)} takes")
    return TensorInfo(name, entry["dtype"], shape, shard, start + begin, start + end)


def _check_metadata(metadata: Any) -> None:
    """Texts by name, or nothing: readers of the library refuse a file that has anything else there."""
    if metadata is not None and not all(isinstance(part, str) for part in (*metadata.keys(), *metadata.values())):
        raise ValueError("__metadata__ holds something that is no text")


def _check_ranges(tensors: list[TensorInfo], shard: str, start: int, size: int) -> None:
    """Tensors lie side by side from the header to the end of the file."""
    position = start
    for tensor in tensors:
        if tensor.begin != position:
            what = "overlaps the tensor before it" if tensor.begin < position else "leaves a gap before it"
            raise _damaged(shard, "tensors side by side", f"{tensor.name} {what}")
        position = tensor.end
    if position > size:
        raise UserError(
            f"shard {shard} is truncated",
            expected=f"{position} bytes",
            found=f"{size} bytes",
            fix="download or copy this file again",
        )
    if position < size:
        raise _damaged(shard, f"{position} bytes", f"{size} bytes, {size - position} of which belong to no tensor")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("the same name appears twice")
    return result


def _damaged(shard: str, expected: str, found: str) -> UserError:
    return UserError(
        f"shard {shard} is not an intact safetensors file",
        expected=expected,
        found=found,
        fix="download or copy this file again",
    )

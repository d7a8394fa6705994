"""Writing safetensors shards whose contents are known in advance by name, type and shape.

The header goes first; then every tensor is written to its place in any order and in any number of pieces, by several
threads at a time if each has tensors of its own. Tensors are placed by falling element size, otherwise in the order
given: readers view the bytes as numbers and need each tensor at a multiple of its element size. A file carries a
temporary name until it is complete and on the disk.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from qconvert.checkpoint.header import TORCH_TYPES, TYPE_CODES, TensorSpec, build_header
from qconvert.checkpoint.reader import CONFIG, INDEX
from qconvert.errors import UserError


class ShardWriter:
    """One shard being written. Use as a context manager; leaving it without an error publishes the file."""

    def __init__(self, path: Path, specs: Sequence[TensorSpec]) -> None:
        self.path = path
        self._temporary = path.with_name(path.name + ".tmp")
        ordered = sorted(specs, key=lambda spec: -TORCH_TYPES[spec.dtype].itemsize)
        header, self._places = build_header(ordered, path.name)
        self._written = dict.fromkeys(self._places, 0)
        self._file = self._temporary.open("wb", buffering=0)
        self._put(0, header)

    def append(self, name: str, data: Tensor) -> None:
        """Write the next elements of a tensor."""
        place = self._places[name]
        raw = memoryview(data.contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
        start = place.begin + self._written[name]
        if start + len(raw) > place.end:
            raise ValueError(f"{name}: more data than its shape {place.shape} holds")
        self._put(start, raw)
        self._written[name] += len(raw)

    def publish(self) -> None:
        """Wait until all is on the disk, then give the file its name."""
        self._check_complete()
        os.fsync(self._file.fileno())
        self._file.close()
        self._temporary.replace(self.path)

    def publish_hashed(self) -> str:
        """`publish`, and the file's SHA-256, for which it is read while the disk writes."""
        self._check_complete()
        with ThreadPoolExecutor(1, "qconvert-sync") as beside:
            synced = beside.submit(os.fsync, self._file.fileno())
            sha256 = hash_file(self._temporary)
            synced.result()
        self._file.close()
        self._temporary.replace(self.path)
        return sha256

    def discard(self) -> None:
        """Leave no file behind, unless it was published."""
        self._file.close()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.publish()
        finally:
            self.discard()

    def _check_complete(self) -> None:
        for name, place in self._places.items():
            if self._written[name] != place.nbytes:
                raise ValueError(f"{self.path.name}: {name} was not written completely")

    def _put(self, position: int, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            count = os.pwrite(self._file.fileno(), rest, position)
            position, rest = position + count, rest[count:]


def shard_names(count: int) -> list[str]:
    """The names that every loader of this file family expects."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def write_index(folder: Path, shards: Mapping[str, Iterable[TensorSpec]]) -> None:
    """Which tensor is in which shard. A single file needs no index, and then none is written."""
    if len(shards) == 1:
        return
    weight_map = {spec.name: shard for shard, specs in shards.items() for spec in specs}
    total = sum(spec.nbytes for specs in shards.values() for spec in specs)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_durably(folder / INDEX, (json.dumps(index, indent=2) + "\n").encode())


def write_durably(path: Path, data: bytes) -> None:
    """Write a small file and wait until it is on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def copy_durably(source: Path, path: Path) -> None:
    """Copy a file's bytes and wait until they are on the disk. It gets its name when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    shutil.copyfile(source, temporary)
    with temporary.open("r+b") as file:  # some file systems sync only what is open for writing
        os.fsync(file.fileno())
    temporary.replace(path)


def hash_file(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checkpoint(
    folder: str | Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor], shards: int = 1
) -> Path:
    """A small checkpoint from tensors in memory: for tests and for the training of the small model."""
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    if shards < 1 or shards > len(tensors):
        raise UserError(f"cannot spread {len(tensors)} tensors over {shards} shards")
    names = list(tensors)
    contents = {}
    for number, shard in enumerate(shard_names(shards)):
        own = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        contents[shard] = save_safetensors(root / shard, {name: tensors[name] for name in own})
    write_index(root, contents)
    write_durably(root / CONFIG, (json.dumps(config, indent=2) + "\n").encode())
    return root


def save_safetensors(path: str | Path, tensors: Mapping[str, Tensor]) -> list[TensorSpec]:
    """One safetensors file from tensors in memory."""
    specs = [TensorSpec(name, TYPE_CODES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()]
    with ShardWriter(Path(path), specs) as writer:
        for name, tensor in tensors.items():
            writer.append(name, tensor.detach().cpu())
    return specs

"""A checkpoint folder, read lazily: config.json, safetensors shards with or without an index, and the files beside
them.

Opening reads headers only. Whole tensors come through the safetensors library (whole.py), rows and other pieces by one
plain read of exactly their bytes: shards are neither mapped nor loaded whole, so memory is what the caller asked for.
Any number of threads may share a Checkpoint.

Refused here, by name: an index that names shards or tensors that are not there, or tensors that it does not name;
paths that leave the folder. A link may lead out of the folder only into the blob stores of a Hugging Face cache,
where every file is one.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from qconvert.checkpoint.header import TORCH_TYPES, TensorInfo, read_header
from qconvert.checkpoint.whole import OpenShards
from qconvert.errors import UserError

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
MANIFEST = "qconvert.json"
TENSOR_REPORT = "qconvert_tensors.csv"
WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx"}


@dataclass(frozen=True)
class Checkpoint:
    """An opened folder. `tensors` are ordered by shard, then by position in it."""

    root: Path
    config_text: str
    config: dict[str, Any]
    shards: tuple[str, ...]
    tensors: Mapping[str, TensorInfo] = field(repr=False)
    whole: OpenShards = field(repr=False, compare=False)

    @classmethod
    def open(cls, path: str | Path) -> "Checkpoint":
        """Read config, index and headers of a local folder."""
        root = Path(path)
        if not root.is_dir():
            raise UserError(f"no such folder: {root}", fix="give the folder of a checkpoint, or a hub id org/name")
        text, config = read_config(root)
        weight_map = _read_index(root)
        if weight_map is None:
            shards = tuple(sorted(entry.name for entry in root.glob("*.safetensors")))
            if not shards:
                raise UserError(f"{root} is not a checkpoint", expected="*.safetensors files", found="none")
        else:
            shards = tuple(sorted(set(weight_map.values())))
        tensors: dict[str, TensorInfo] = {}
        for shard in shards:
            for tensor in read_header(inside(root, shard), shard):
                if tensor.name in tensors:
                    raise UserError(
                        f"tensor {tensor.name} is in two shards", where=f"{tensors[tensor.name].file}, {shard}"
                    )
                tensors[tensor.name] = tensor
        if weight_map is not None:
            _check_index(weight_map, tensors)
        return cls(root, text, config, shards, tensors, OpenShards(root))

    def read(self, name: str) -> Tensor:
        """One tensor in memory of its own."""
        return self.whole.read(self.tensors[name])

    def read_rows(self, name: str, start: int, stop: int) -> Tensor:
        """Rows start..stop of a tensor [N, ...], without reading the others."""
        info = self.tensors[name]
        stop = min(stop, info.shape[0])
        row = info.nbytes // info.shape[0]
        data = self._read(info, info.begin + start * row, info.begin + stop * row)
        return data.view(TORCH_TYPES[info.dtype]).view(stop - start, *info.shape[1:])

    def read_flat(self, name: str, chunk_bytes: int) -> Iterator[Tensor]:
        """All elements of a tensor in order, as 1-D pieces of at most that many bytes."""
        info = self.tensors[name]
        step = chunk_bytes // 8 * 8  # a multiple of every type's size
        for begin in range(info.begin, info.end, step):
            yield self._read(info, begin, min(begin + step, info.end)).view(TORCH_TYPES[info.dtype])

    def read_bytes(self, name: str) -> bytes:
        """The bytes of a tensor as they lie in the file."""
        info = self.tensors[name]
        return self._read(info, info.begin, info.end).numpy().tobytes()

    def other_files(self) -> list[str]:
        """Relative names of all files to be copied verbatim: tokenizer, generation config, templates, licence ..."""
        known = {CONFIG, INDEX, MANIFEST, TENSOR_REPORT, *self.shards}
        names = (entry.relative_to(self.root) for entry in self.root.rglob("*") if entry.is_file())
        return sorted(
            name.as_posix()
            for name in names
            if name.as_posix() not in known
            and name.suffix not in WEIGHT_SUFFIXES
            and not any(part.startswith(".") for part in name.parts[:-1])  # .git, and the downloader's .cache
        )

    def support_files(self) -> list[str]:
        """All files of the checkpoint but its shards, as far as they are there."""
        own = [name for name in (CONFIG, INDEX) if (self.root / name).is_file()]
        return own + self.other_files()

    def file(self, name: str) -> Path:
        """The path of a file of this folder; refuses links that lead out of it."""
        return inside(self.root, name)

    def left_out_files(self) -> list[str]:
        """Weights in other containers beside the checkpoint: copies of the same model that we neither read nor copy."""
        names = (entry.relative_to(self.root) for entry in self.root.rglob("*") if entry.is_file())
        return sorted(n.as_posix() for n in names if n.suffix in WEIGHT_SUFFIXES and n.as_posix() not in self.shards)

    def _read(self, info: TensorInfo, begin: int, end: int) -> Tensor:
        return _read_range(self.root / info.file, begin, end)


def load_safetensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of one small safetensors file."""
    file = Path(path)
    whole = OpenShards(file.parent)
    return {info.name: whole.read(info) for info in read_header(file, file.name)}


def inside(root: Path, name: str) -> Path:
    """The path of a file of the folder; refuses names and links that lead out of it, and files that are not there."""
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name:
        raise UserError(
            f"file name {name!r} leads out of the folder", where=str(root), fix="do not trust this checkpoint"
        )
    path = root / pure
    if not path.is_file():
        raise UserError(f"file {name} is missing", where=str(root), fix="download or copy the checkpoint again")
    allowed = [root.resolve()]
    if root.resolve().parent.name == "snapshots":
        repository = root.resolve().parent.parent
        allowed.append(repository / "blobs")
        if repository.name.startswith("models--"):  # whose blobs may be links themselves, into one store for all
            allowed.append(repository.parent / "blobs")
    target = path.resolve()
    if not any(target.is_relative_to(folder) for folder in allowed):
        raise UserError(f"{name} is a link that leads out of the folder", where=str(root), found=str(target))
    return path


def read_config(root: Path) -> tuple[str, dict[str, Any]]:
    """config.json of a folder, as text and parsed."""
    if not (root / CONFIG).is_file():
        raise UserError(f"{root} is not a checkpoint", expected=CONFIG, found="no such file in it")
    try:
        text = inside(root, CONFIG).read_bytes().decode()  # bytes, so that line ends survive
        config = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{CONFIG} cannot be read", where=str(root), expected="JSON in UTF-8", found=str(error)
        ) from error
    if not isinstance(config, dict):
        raise UserError(
            f"{CONFIG} cannot be read", where=str(root), expected="a JSON object", found=type(config).__name__
        )
    return text, config


def _read_index(root: Path) -> dict[str, str] | None:
    if not (root / INDEX).exists():
        return None
    try:
        weight_map = json.loads(inside(root, INDEX).read_bytes())["weight_map"]
        good = bool(weight_map) and all(isinstance(part, str) for part in (*weight_map.keys(), *weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        good = False
    if not good:
        raise UserError(f"{INDEX} cannot be read", where=str(root), expected='{"weight_map": {tensor: shard, ...}}')
    return dict(weight_map)


def _check_index(weight_map: dict[str, str], tensors: dict[str, TensorInfo]) -> None:
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].file != shard:
            found = f"it is in {tensors[name].file}" if name in tensors else "no shard has it"
            raise UserError(f"tensor {name} is missing", where=f"{INDEX} says {shard}", found=found)
    extra = [name for name in tensors if name not in weight_map]
    if extra:
        raise UserError(
            f"tensor {extra[0]} is not in {INDEX}",
            where=tensors[extra[0]].file,
            found=f"{len(extra)} such tensors",
            fix="rebuild the index, or delete it: a folder without index is read shard by shard",
        )


def _read_range(path: Path, begin: int, end: int) -> Tensor:
    """Bytes begin..end of a file, as a tensor of uint8."""
    data = torch.empty(end - begin, dtype=torch.uint8)
    view = memoryview(data.numpy())  # type: ignore[arg-type]
    filled = 0
    with path.open("rb", buffering=0) as file:
        file.seek(begin)
        while filled < len(view):
            count = file.readinto(view[filled:])
            if not count:
                raise UserError(f"shard {path.name} became shorter while it was read")
            filled += count
    return data

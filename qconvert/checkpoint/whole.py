"""Whole tensors, read through the safetensors library: every type it knows, into memory of their own.

A shard is opened once, at its first tensor, and stays open: parsing the header of a large shard for each tensor costs
as much as reading the tensor. The library reads with pread, not by mapping: a mapped file that becomes shorter ends
the process by a signal. Any number of threads may share one `OpenShards`.

Left out: pieces of tensors, for which the library reads the whole (reader.py has them), and headers that nobody has
checked: the library takes a name that appears twice, and its refusals name neither shard nor tensor (header.py).
"""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from qconvert.checkpoint.header import TORCH_TYPES, TensorInfo
from qconvert.errors import UserError, first_line


class OpenShards:
    """The shards of one folder, opened as they are needed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[str, Any] = {}  # safe_open, whose methods have no types

    def read(self, info: TensorInfo) -> Tensor:
        """The tensor that a checked header has described; a UserError if the file is no longer what it was."""
        try:
            shard = self._open.get(info.file)
            if shard is None:  # two threads may both open it: one of the two is kept
                opened = safe_open(self._root / info.file, framework="pt", backend="pread")
                shard = self._open.setdefault(info.file, opened)
            tensor: Tensor = shard.get_tensor(info.name)
        except (SafetensorError, FileNotFoundError) as error:  # what else the system says is not about the file
            raise _changed(info, first_line(error)) from error
        if tuple(tensor.shape) != info.shape or tensor.dtype != TORCH_TYPES[info.dtype]:
            raise _changed(info, f"{tensor.dtype} {list(tensor.shape)}")
        return tensor


def _changed(info: TensorInfo, found: str) -> UserError:
    return UserError(
        f"shard {info.file} changed while it was read, or is damaged",
        where=info.name,
        expected=f"{info.dtype} {list(info.shape)}",
        found=found,
        fix="let nothing write to the checkpoint while it is read; download or copy this file again",
    )

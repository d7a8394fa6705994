"""Writing shards: pieces in any order, alignment, and nothing under the final name before all is there."""

from pathlib import Path

import pytest
import torch

from qconvert.checkpoint import Checkpoint, ShardWriter, TensorSpec, hash_file, shard_names, write_checkpoint
from qconvert.checkpoint.header import TORCH_TYPES, read_header
from qconvert.errors import UserError

SPECS = [
    TensorSpec("odd", "F8_E4M3", (3, 5)),
    TensorSpec("scale", "BF16", (3,)),
    TensorSpec("wide", "F32", (2,)),
    TensorSpec("more", "F8_E4M3", (1,)),
    TensorSpec("last", "BF16", (2, 2)),
]


def value(spec: TensorSpec) -> torch.Tensor:
    return torch.arange(spec.nbytes, dtype=torch.uint8).view(TORCH_TYPES[spec.dtype]).view(spec.shape)


def test_pieces_in_any_order_give_the_same_file(tmp_path: Path) -> None:
    hashes = set()
    for number, order in enumerate([SPECS, SPECS[::-1]]):
        path = tmp_path / str(number) / "x.safetensors"
        path.parent.mkdir()
        with ShardWriter(path, SPECS) as writer:
            for spec in order:
                for row in value(spec).split(1):
                    writer.append(spec.name, row)
            assert not path.exists()
        hashes.add(hash_file(path))
        for info in read_header(path, path.name):
            assert info.begin % TORCH_TYPES[info.dtype].itemsize == 0
    assert len(hashes) == 1


def test_incomplete_or_overfull_tensors_are_bugs_and_leave_no_file(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="odd was not written completely"),
        ShardWriter(tmp_path / "x", SPECS[:1]) as writer,
    ):
        writer.append("odd", value(SPECS[0])[:2])
    with pytest.raises(ValueError, match="more data than its shape"), ShardWriter(tmp_path / "x", SPECS[:1]) as writer:
        writer.append("odd", torch.zeros(16, dtype=torch.uint8))
    assert list(tmp_path.iterdir()) == []


def test_shard_names() -> None:
    assert shard_names(1) == ["model.safetensors"]
    assert shard_names(2) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def test_more_shards_than_tensors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot spread 1 tensors over 2 shards"):
        write_checkpoint(tmp_path, {}, {"a": torch.zeros(1)}, shards=2)


def test_order_is_shard_then_place(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(2) for name in ("z", "b", "a", "c")}
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, {}, tensors, 2))
    assert list(checkpoint.tensors) == ["z", "b", "a", "c"]

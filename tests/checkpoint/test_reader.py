"""Reading checkpoint folders: what comes out equals what went in, and every kind of damage is refused by name."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from qconvert.checkpoint import Checkpoint, load_safetensors, save_safetensors, write_checkpoint
from qconvert.checkpoint.header import TORCH_TYPES
from qconvert.errors import UserError

TENSORS = {
    "a.weight": torch.arange(12, dtype=torch.float32).view(4, 3),
    "b.weight": torch.randn(5, 7).bfloat16(),
    "c": torch.tensor([], dtype=torch.int64),
    "d.scale": torch.tensor(2.5),
    "e.codes": torch.arange(9, dtype=torch.uint8).view(3, 3).view(torch.float8_e4m3fn),
}
INDEX = "model.safetensors.index.json"


def edit_header(path: Path, change: Callable[[dict[str, dict[str, object]]], None]) -> None:
    """Rewrite a shard's header."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_reads_what_was_written(tmp_path: Path, shards: int) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, {"x": 1}, TENSORS, shards))
    assert checkpoint.config == {"x": 1}
    assert len(checkpoint.shards) == shards
    assert set(checkpoint.tensors) == set(TENSORS)
    for name, want in TENSORS.items():
        got = checkpoint.read(name)
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        assert checkpoint.read_bytes(name) == want.reshape(-1).view(torch.uint8).numpy().tobytes()
        pieces = list(checkpoint.read_flat(name, 16))
        assert sum(piece.numel() for piece in pieces) == want.numel() == checkpoint.tensors[name].numel
    assert torch.equal(checkpoint.read_rows("b.weight", 1, 3), TENSORS["b.weight"][1:3])
    assert torch.equal(checkpoint.read_rows("b.weight", 4, 99), TENSORS["b.weight"][4:])


@pytest.mark.parametrize("with_index", [True, False])
def test_index_is_optional(tmp_path: Path, with_index: bool) -> None:
    write_checkpoint(tmp_path, {}, TENSORS, 2)
    if not with_index:
        (tmp_path / INDEX).unlink()
    assert set(Checkpoint.open(tmp_path).tensors) == set(TENSORS)


@pytest.mark.parametrize("code", TORCH_TYPES)
def test_every_type_is_read_whole_as_it_is_read_in_pieces(tmp_path: Path, code: str) -> None:
    kind = TORCH_TYPES[code]
    number = torch.arange(12, dtype=torch.float32).view(4, 3) % 2  # bytes that are a value of every type
    want = number.to(kind) if code not in ("U16", "U32", "U64") else number.to(torch.int64).to(kind)
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, {}, {"w": want, "none": want[:0], "one": want[0, 1]}))
    for name, part in (("w", want), ("none", want[:0]), ("one", want[0, 1])):
        got = checkpoint.read(name)
        assert got.dtype == kind and got.shape == part.shape
        assert got.reshape(-1).view(torch.uint8).numpy().tobytes() == checkpoint.read_bytes(name)
    assert checkpoint.read_rows("w", 0, 4).view(torch.uint8).equal(checkpoint.read("w").view(torch.uint8))


def test_a_tensor_read_is_memory_of_its_own(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, {}, TENSORS))
    first = checkpoint.read("a.weight")
    assert first.untyped_storage().nbytes() == first.nbytes
    first.zero_()
    assert torch.equal(checkpoint.read("a.weight"), TENSORS["a.weight"])
    assert torch.equal(Checkpoint.open(tmp_path).read("a.weight"), TENSORS["a.weight"])


SHORTER = """
import os, sys
from qconvert.checkpoint import Checkpoint
from qconvert.errors import UserError
checkpoint = Checkpoint.open(sys.argv[1])
if sys.argv[2] == "opened":
    checkpoint.read("small")
os.truncate(sys.argv[1] + "/model.safetensors", 4096)
for read in (lambda: checkpoint.read("big"), lambda: checkpoint.read_rows("big", 500, 600)):
    try:
        read()
    except UserError as error:
        print(error.what)
"""


@pytest.mark.parametrize("state", ["opened", "not opened"])
def test_a_file_that_becomes_shorter_is_an_error_and_no_signal(tmp_path: Path, state: str) -> None:
    """In a process of its own: where a mapped file becomes shorter, the process ends by SIGBUS."""
    write_checkpoint(tmp_path, {}, {"big": torch.zeros(1024, 1024), "small": torch.zeros(1)})
    arguments = [sys.executable, "-c", SHORTER, str(tmp_path), state]
    done = subprocess.run(
        arguments, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    whole, rows = done.stdout.splitlines()
    assert whole == "shard model.safetensors changed while it was read, or is damaged"
    assert rows == "shard model.safetensors became shorter while it was read"


def test_a_file_that_was_replaced_is_not_read_by_the_old_header(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_checkpoint(tmp_path, {}, TENSORS))
    save_safetensors(tmp_path / "model.safetensors", TENSORS | {"a.weight": torch.zeros(3, 4)})
    with pytest.raises(UserError, match="changed while it was read") as refused:
        checkpoint.read("a.weight")
    assert "[3, 4]" in str(refused.value) and "[4, 3]" in str(refused.value)


def test_agrees_with_the_safetensors_library_both_ways(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "ours.safetensors", TENSORS)
    safetensors.torch.save_file(TENSORS, tmp_path / "theirs.safetensors")
    theirs, ours = (
        safetensors.torch.load_file(tmp_path / "ours.safetensors"),
        load_safetensors(tmp_path / "theirs.safetensors"),
    )
    for name, want in TENSORS.items():
        for got in (theirs[name], ours[name]):
            assert got.dtype == want.dtype
            assert torch.equal(got.reshape(-1).view(torch.uint8), want.reshape(-1).view(torch.uint8))


def test_other_files_are_everything_but_weights_and_our_own(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {}, TENSORS, 2)
    for name in (
        "tokenizer.json",
        "LICENSE",
        "extra/chat.jinja",
        "pytorch_model.bin",
        ".cache/x.lock",
        "qconvert.json",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.other_files() == ["LICENSE", "extra/chat.jinja", "tokenizer.json"]
    assert checkpoint.left_out_files() == ["pytorch_model.bin"]


def missing_shard(root: Path) -> None:
    (root / "model-00002-of-00002.safetensors").unlink()


def truncated(root: Path) -> None:
    shard = root / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])


def truncated_header(root: Path) -> None:
    shard = root / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:20])


def too_long(root: Path) -> None:
    with (root / "model-00002-of-00002.safetensors").open("ab") as file:
        file.write(b"x")


def huge_header(root: Path) -> None:
    shard = root / "model-00001-of-00002.safetensors"
    shard.write_bytes((2**60).to_bytes(8, "little") + shard.read_bytes()[8:])


def change_index(root: Path, name: str, shard: str | None) -> None:
    index = json.loads((root / INDEX).read_text())
    index["weight_map"].pop(name, None)
    if shard is not None:
        index["weight_map"][name] = shard
    (root / INDEX).write_text(json.dumps(index))


def linked_out(root: Path) -> None:
    shard = root / "model-00001-of-00002.safetensors"
    outside = root.parent / "outside.safetensors"
    shard.rename(outside)
    shard.symlink_to(outside)


def overlap(root: Path) -> None:
    edit_header(
        root / "model-00001-of-00002.safetensors",
        lambda header: header["b.weight"].update(data_offsets=[0, 70]),
    )


def out_of_range(root: Path) -> None:
    edit_header(
        root / "model-00001-of-00002.safetensors",
        lambda header: header["b.weight"].update(data_offsets=[48, 2**62], shape=[2**61 - 24]),
    )


def wrong_size(root: Path) -> None:
    edit_header(root / "model-00001-of-00002.safetensors", lambda header: header["b.weight"].update(shape=[5, 8]))


def negative(root: Path) -> None:
    edit_header(root / "model-00001-of-00002.safetensors", lambda header: header["b.weight"].update(shape=[-5, -7]))


def unknown_type(root: Path) -> None:
    edit_header(root / "model-00001-of-00002.safetensors", lambda header: header["b.weight"].update(dtype="F4"))


def metadata_of_numbers(root: Path) -> None:
    edit_header(root / "model-00001-of-00002.safetensors", lambda header: header["__metadata__"].update(step=3))


def one_name_twice(root: Path) -> None:
    shard = root / "model-00002-of-00002.safetensors"
    data = shard.read_bytes()
    length = int.from_bytes(data[:8], "little")
    text = data[8 : 8 + length].replace(b'"c"', b'"d.scale"')
    shard.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    assert len(safetensors.safe_open(shard, "pt").keys()) == 2  # the library takes one of them


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing_shard, "file model-00002-of-00002.safetensors is missing"),
        (truncated, "shard model-00002-of-00002.safetensors is truncated"),
        (truncated_header, "shard model-00001-of-00002.safetensors is not an intact"),
        (too_long, "1 of which belong to no tensor"),
        (huge_header, "shard model-00001-of-00002.safetensors is not an intact"),
        (lambda root: change_index(root, "z", "model-00001-of-00002.safetensors"), "tensor z is missing"),
        (lambda root: change_index(root, "a.weight", "model-00002-of-00002.safetensors"), "tensor a.weight is missing"),
        (lambda root: change_index(root, "a.weight", None), "tensor a.weight is not in model.safetensors.index.json"),
        (lambda root: change_index(root, "a.weight", "../x.safetensors"), "leads out of the folder"),
        (lambda root: change_index(root, "a.weight", "/etc/passwd"), "leads out of the folder"),
        (linked_out, "is a link that leads out of the folder"),
        (overlap, "overlaps the tensor before it"),
        (out_of_range, "shard model-00001-of-00002.safetensors is truncated"),
        (wrong_size, "b.weight has 70 bytes"),
        (negative, "no natural number"),
        (metadata_of_numbers, "__metadata__ holds something that is no text"),
        (one_name_twice, "the same name appears twice"),
        (unknown_type, "b.weight has the unknown type F4"),
        (lambda root: (root / INDEX).write_text("{}"), "index.json cannot be read"),
        (lambda root: (root / INDEX).write_text('{"weight_map": {"a": 3}}'), "index.json cannot be read"),
        (lambda root: (root / "config.json").write_text('{"a": '), "config.json cannot be read"),
        (lambda root: (root / "config.json").write_text("[]"), "a JSON object"),
        (lambda root: (root / "config.json").unlink(), "is not a checkpoint"),
    ],
)
def test_damage_is_refused_by_name(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    root = write_checkpoint(tmp_path / "model", {}, TENSORS, 2)
    damage(root)
    with pytest.raises(UserError, match=message):
        Checkpoint.open(root)


def test_no_folder_and_no_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        Checkpoint.open(tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="is not a checkpoint"):
        Checkpoint.open(tmp_path)


def test_one_name_in_two_shards(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, {}, TENSORS)
    save_safetensors(tmp_path / "more.safetensors", {"a.weight": torch.zeros(1)})
    with pytest.raises(UserError, match=r"a\.weight is in two shards"):
        Checkpoint.open(tmp_path)


def test_links_into_the_hub_cache_are_fine(tmp_path: Path) -> None:
    from qconvert.checkpoint import hub_identity

    real = write_checkpoint(tmp_path / "real", {}, TENSORS)
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123abcd"
    blobs = tmp_path / "models--org--name" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(real.iterdir()):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    assert set(Checkpoint.open(snapshot).tensors) == set(TENSORS)
    assert hub_identity(snapshot) == {"repository": "org/name", "revision": "0123abcd"}
    assert hub_identity(real) == {}

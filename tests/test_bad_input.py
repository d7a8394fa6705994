"""Bad input: exit code 2, one clear message on stderr, no traceback, nothing left behind, and the source as it was."""

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from click.testing import CliRunner

from qconvert.checkpoint import INDEX, ShardWriter, write_checkpoint
from qconvert.cli import main
from qconvert.quantization import quantize
from tests.filesystem.mounts import mounted
from tests.tiny import tiny_config, tiny_tensors, write_tiny_checkpoint

ROOT = Path(__file__).parents[1]
EXPERT = "model.layers.1.mlp.experts.3.down_proj.weight"


def contents(folder: Path) -> dict[str, str]:
    """Every file and folder below, hidden ones too, with the hash of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def refused(place: Path, *arguments: Any, says: tuple[str, ...]) -> None:
    """Run a command that must be refused: `place` holds source and destination and must not change in any way."""
    before = contents(place)
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert isinstance(done.exception, SystemExit), repr(done.exception)
    assert done.exit_code == 2
    assert done.stdout == ""
    first, *rest = done.stderr.splitlines()
    assert first.startswith("error: ")
    assert all(line.startswith("  ") for line in rest), done.stderr  # where, expected, found, fix
    assert "Traceback" not in done.stderr
    for text in says:
        assert text in done.stderr
    assert contents(place) == before


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "source")


def test_no_such_folder(tmp_path: Path) -> None:
    refused(tmp_path, "quantize", tmp_path / "nowhere", tmp_path / "out", says=("no such folder", "nowhere"))
    for command in ("inspect", "verify"):
        refused(tmp_path, command, tmp_path / "nowhere", says=("no such folder", "nowhere"))


def test_not_a_checkpoint(tmp_path: Path) -> None:
    empty = tmp_path / "photos"
    empty.mkdir()
    refused(tmp_path, "quantize", empty, tmp_path / "out", says=("not a checkpoint", "config.json"))
    for command in ("inspect", "verify"):
        refused(tmp_path, command, empty, says=("not a checkpoint", "config.json"))
    (empty / "config.json").write_text(json.dumps(tiny_config()))
    refused(tmp_path, "quantize", empty, tmp_path / "out", says=("not a checkpoint", "*.safetensors"))
    refused(tmp_path, "verify", empty, says=("not a checkpoint", "*.safetensors"))


def test_a_file_instead_of_a_folder(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"")
    refused(tmp_path, "quantize", file, tmp_path / "out", says=("model.safetensors",))
    for command in ("inspect", "verify"):
        refused(tmp_path, command, file, says=("model.safetensors",))


def test_config_that_is_no_json(source: Path, tmp_path: Path) -> None:
    (source / "config.json").write_text("{not json")
    refused(tmp_path, "quantize", source, tmp_path / "out", says=("config.json cannot be read",))
    refused(tmp_path, "inspect", source, says=("config.json cannot be read",))


def test_wrong_model_type_is_named(source: Path, tmp_path: Path) -> None:
    (source / "config.json").write_text(json.dumps(tiny_config(model_type="llama")))
    refused(tmp_path, "quantize", source, tmp_path / "out", says=("'llama'", "qwen3_next"))
    for command in ("inspect", "verify"):
        refused(tmp_path, command, source, says=("'llama'", "qwen3_next"))


def rewrite_index(source: Path, tensor: str, shard: str) -> None:
    index = json.loads((source / INDEX).read_text())
    index["weight_map"][tensor] = shard
    (source / INDEX).write_text(json.dumps(index))


def test_index_names_a_missing_shard(source: Path, tmp_path: Path) -> None:
    rewrite_index(source, EXPERT, "model-00003-of-00003.safetensors")
    refused(tmp_path, "quantize", source, tmp_path / "out", says=("model-00003-of-00003.safetensors", "missing"))
    refused(tmp_path, "inspect", source, says=("model-00003-of-00003.safetensors", "missing"))


def test_index_leads_out_of_the_folder(source: Path, tmp_path: Path) -> None:
    shutil.copy(source / "model-00001-of-00002.safetensors", tmp_path / "elsewhere.safetensors")
    rewrite_index(source, EXPERT, "../elsewhere.safetensors")
    refused(
        tmp_path, "quantize", source, tmp_path / "out", says=("../elsewhere.safetensors", "leads out of the folder")
    )
    refused(tmp_path, "inspect", source, says=("../elsewhere.safetensors", "leads out of the folder"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "infinity"])
def test_tensor_that_is_not_finite_is_named(tmp_path: Path, value: float) -> None:
    tensors = tiny_tensors(tiny_config())
    tensors[EXPERT][17, 5] = value
    source = write_checkpoint(tmp_path / "source", tiny_config(), tensors)
    refused(tmp_path, "quantize", source, tmp_path / "out", says=(EXPERT, "[17, 5]"))


def test_already_quantized_source(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "fp8")
    refused(tmp_path, "quantize", tmp_path / "fp8", tmp_path / "out", says=("quantized already", "fp8"))


def test_source_of_dequantize_is_not_quantized(source: Path, tmp_path: Path) -> None:
    refused(tmp_path, "dequantize", source, tmp_path / "out", says=("not quantized",))


def test_destination_exists(source: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("irreplaceable")
    refused(tmp_path, "quantize", source, taken, says=("taken", "exists"))
    refused(tmp_path, "quantize", source, taken, "--overwrite", says=("taken", "not a checkpoint"))


def test_destination_inside_the_source(source: Path, tmp_path: Path) -> None:
    refused(tmp_path, "quantize", source, source / "fp8", says=("inside the source",))
    refused(tmp_path, "quantize", source, source, "--overwrite", says=("is the source",))


def test_truncated_shard_of_the_source(source: Path, tmp_path: Path) -> None:
    shard = source / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    refused(tmp_path, "quantize", source, tmp_path / "out", says=("model-00002-of-00002.safetensors is truncated",))
    refused(tmp_path, "inspect", source, says=("model-00002-of-00002.safetensors is truncated",))


def test_source_of_verify_is_refused_like_any_source(source: Path, tmp_path: Path) -> None:
    refused(tmp_path, "verify", source, "--against", tmp_path / "nowhere", says=("no such folder", "nowhere"))


class _Usage(NamedTuple):
    total: int
    used: int
    free: int


def test_disk_that_is_full_before_the_start(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(10**6, 10**6 - 4096, 4096))
    refused(tmp_path, "quantize", source, tmp_path / "out", says=("not enough disk space", "4096 bytes available"))


def test_disk_that_fills_up_on_the_way(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Something else takes the space after the check: the write itself fails."""
    append = ShardWriter.append

    def fail(self: ShardWriter, name: str, data: torch.Tensor) -> None:
        if name == EXPERT:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(self, name, data)

    monkeypatch.setattr(ShardWriter, "append", fail)
    refused(tmp_path, "quantize", source, tmp_path / "out", says=("not enough disk space",))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of one megabyte; the converted folder takes two."""
    with mounted(tmp_path / "small", "1m") as mount:
        yield mount


@pytest.mark.parametrize("checked_before", [True, False])
def test_small_disk(
    source: Path, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, checked_before: bool
) -> None:
    if not checked_before:
        monkeypatch.setattr(shutil, "disk_usage", lambda path: _Usage(10**12, 0, 10**12))
    refused(tmp_path, "quantize", source, small_disk / "out", says=("not enough disk space",))


def test_as_a_process_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "qconvert", "inspect", str(tmp_path / "nowhere")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: no such folder") and "Traceback" not in done.stderr

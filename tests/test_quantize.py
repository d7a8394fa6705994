"""Converting whole folders: the right bytes, however they were made, and nothing left behind on failure."""

import errno
import hashlib
import json
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from qconvert import shard
from qconvert.checkpoint import (
    CONFIG,
    INDEX,
    MANIFEST,
    Checkpoint,
    ShardWriter,
    hash_file,
    remove_key,
    write_checkpoint,
)
from qconvert.cli import main
from qconvert.errors import UserError
from qconvert.formats import open_weights
from qconvert.manifest import Manifest
from qconvert.quantization import plan_quantize, quantize
from qconvert.schemes import QuantizedWeight, get_scheme
from tests.tiny import tiny_config, tiny_tensors, write_tiny_checkpoint

SMALL = 400_000  # bytes a shard, so that there are several


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("quantize") / "source", shards=3)


def hashes(folder: Path) -> dict[str, str]:
    """Every file's hash; the manifest without what may differ from run to run."""
    found = {
        path.relative_to(folder).as_posix(): hash_file(path) for path in folder.rglob("*") if path.name != MANIFEST
    }
    record = json.loads((folder / MANIFEST).read_text())
    del record["run"]
    return found | {MANIFEST: json.dumps(record)}


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("scales", ["bf16", "f32", "pow2"])
def test_every_tensor_is_what_the_scheme_says(source: Path, tmp_path: Path, scales: str) -> None:
    quantize(source, tmp_path / "out", scales=scales)
    before, after = open_weights(source), open_weights(tmp_path / "out")
    scheme = get_scheme("fp8-block128", scales=scales)
    assert set(after.names) == set(before.names)
    for name in before.names:
        weight, got = before.load(name), after.load(name)
        assert isinstance(weight, torch.Tensor)
        if isinstance(got, QuantizedWeight):
            want = scheme.quantize(weight)
            assert torch.equal(got.codes.view(torch.uint8), want.codes.view(torch.uint8))
            assert torch.equal(got.scales, want.scales)
        else:
            assert torch.equal(got, weight)


def test_everything_else_is_copied_and_config_keeps_its_text(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "out")
    for name in ("generation_config.json", "LICENSE"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    edited = (tmp_path / "out" / CONFIG).read_text()
    assert remove_key(edited, "quantization_config") == (source / CONFIG).read_text()
    assert hidden(tmp_path) == []


def test_manifest_names_every_file(source: Path, tmp_path: Path) -> None:
    manifest = quantize(source, tmp_path / "out", max_shard_size=SMALL)
    assert Manifest.load(tmp_path / "out") is not None
    files = {path.name: hash_file(path) for path in (tmp_path / "out").iterdir() if path.name != MANIFEST}
    assert {name: entry["sha256"] for name, entry in manifest.output["files"].items()} == files
    inputs = {path.name: hash_file(path) for path in source.iterdir()}
    assert {name: entry["sha256"] for name, entry in manifest.source["files"].items()} == inputs
    assert INDEX in files
    assert manifest.counts["quantized"] == len(open_weights(tmp_path / "out").quantized)


def test_the_same_bytes_for_any_number_of_workers_and_any_run(source: Path, tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 2), ("again", 2)):
        quantize(source, tmp_path / name, workers=workers, max_shard_size=SMALL)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two") == hashes(tmp_path / "again")


def test_workers_share_a_single_shard(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three workers write three tensors of the only shard at the same time; then each goes its own way."""
    quantize(source, tmp_path / "alone")
    together, append, met = threading.Barrier(3), ShardWriter.append, set()

    def meet(self: ShardWriter, name: str, data: torch.Tensor) -> None:
        if threading.get_ident() not in met:
            met.add(threading.get_ident())
            together.wait(timeout=30)
        append(self, name, data)

    monkeypatch.setattr(ShardWriter, "append", meet)
    quantize(source, tmp_path / "out", workers=3)
    assert len(met) == 3
    assert hashes(tmp_path / "out") == hashes(tmp_path / "alone")


def test_a_shard_that_does_not_reach_the_disk_leaves_no_record(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is hashed while it is synced; a failing sync must count all the same."""
    sync = os.fsync

    def fail(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").readlink().name == "model.safetensors.tmp":
            raise OSError(errno.EIO, "Input/output error")
        sync(handle)

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match="input/output error"):
        quantize(source, tmp_path / "out", workers=2)
    for partial in tmp_path.iterdir():  # copies may have been finished beside
        assert not list(partial.glob("model*"))
        assert not list(partial.glob(".records/out*model*"))


def test_small_pieces_change_nothing(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quantize(source, tmp_path / "large")
    monkeypatch.setattr(shard, "PIECE_BYTES", 4096)
    quantize(source, tmp_path / "small")
    assert hashes(tmp_path / "small") == hashes(tmp_path / "large")


@pytest.mark.parametrize("resume", [True, False])
def test_an_interrupted_run_goes_on_where_it_stopped(source: Path, tmp_path: Path, resume: bool) -> None:
    quantize(source, tmp_path / "straight", max_shard_size=SMALL)
    interrupted = tmp_path / "interrupted"

    def ctrl_c(done: int, total: int) -> None:
        if done > 0.6 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(source, interrupted, max_shard_size=SMALL, progress=ctrl_c)
    assert not interrupted.exists()
    (partial,) = tmp_path.glob(".interrupted*")
    finished = {path.name: path.stat().st_mtime_ns for path in partial.glob("*.safetensors")}
    assert finished
    assert not list(partial.glob("*.tmp"))
    seen: list[tuple[int, int]] = []
    quantize(
        source,
        interrupted,
        max_shard_size=SMALL,
        resume=resume,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert hashes(interrupted) == hashes(tmp_path / "straight")
    assert seen[-1][0] == seen[-1][1]
    reused = [name for name, time in finished.items() if (interrupted / name).stat().st_mtime_ns == time]
    assert reused == (list(finished) if resume else [])
    assert hidden(tmp_path) == []


def test_a_partial_folder_of_another_plan_is_not_reused(source: Path, tmp_path: Path) -> None:
    def ctrl_c(done: int, total: int) -> None:
        if done > 0.6 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(source, tmp_path / "out", max_shard_size=SMALL, scales="f32", progress=ctrl_c)
    quantize(source, tmp_path / "out", max_shard_size=SMALL)
    quantize(source, tmp_path / "straight", max_shard_size=SMALL)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "straight")


def test_a_finished_shard_that_lost_bytes_is_written_again(source: Path, tmp_path: Path) -> None:
    def ctrl_c(done: int, total: int) -> None:
        if done > 0.6 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(source, tmp_path / "out", max_shard_size=SMALL, progress=ctrl_c)
    first = next(tmp_path.glob(".out*/model-00001-*"))
    first.write_bytes(first.read_bytes()[:-1])
    quantize(source, tmp_path / "out", max_shard_size=SMALL)
    quantize(source, tmp_path / "straight", max_shard_size=SMALL)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "straight")


@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.experts.3.down_proj.weight", "lm_head.weight", "model.norm.weight"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_no_model_can_use_are_named_and_nothing_is_left(tmp_path: Path, name: str, value: float) -> None:
    tensors = tiny_tensors(tiny_config())
    place = (101, 7)[: tensors[name].ndim]
    tensors[name][place] = value
    source = write_checkpoint(tmp_path / "source", tiny_config(), tensors)
    with pytest.raises(UserError) as caught:
        quantize(source, tmp_path / "out")
    assert name in str(caught.value)
    assert str(list(place)) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_disk_too_small_is_refused_before_the_first_byte(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(UserError, match=r"not enough disk space[\s\S]*1000 bytes available"):
        quantize(source, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_disk_that_fills_up_on_the_way_keeps_what_is_finished(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantize(source, tmp_path / "straight", max_shard_size=SMALL)
    append = ShardWriter.append

    def full(self: ShardWriter, name: str, data: torch.Tensor) -> None:
        if "layers.2" in name:
            raise OSError(errno.ENOSPC, "No space left on device")
        append(self, name, data)

    monkeypatch.setattr(ShardWriter, "append", full)
    with pytest.raises(UserError, match=r"not enough disk space[\s\S]*the same command goes on from there"):
        quantize(source, tmp_path / "out", max_shard_size=SMALL, workers=2)
    assert not (tmp_path / "out").exists()
    (partial,) = (path for path in tmp_path.iterdir() if path.name.startswith("."))
    before = {path.name: path.stat().st_mtime_ns for path in partial.glob("*.safetensors")}
    assert before
    monkeypatch.setattr(ShardWriter, "append", append)
    quantize(source, tmp_path / "out", max_shard_size=SMALL, workers=2)
    assert hashes(tmp_path / "out") == hashes(tmp_path / "straight")
    after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.safetensors")}
    assert before.items() <= after.items()  # what was finished was not written again


def test_source_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "source")

    def meddle(done: int, total: int) -> None:
        if done == total:
            (source / "generation_config.json").write_text("{}")

    with pytest.raises(UserError, match=r"generation_config\.json changed during the conversion"):
        quantize(source, tmp_path / "out", progress=meddle)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_log_in_the_source_may_grow_and_files_may_come_and_go(tmp_path: Path) -> None:
    """`quantize . ../out > convert.log` in the folder of the model."""
    source = write_tiny_checkpoint(tmp_path / "source")
    (source / "convert.log").write_text("begun\n")
    (source / "gone.txt").write_text("note\n")

    def meddle(done: int, total: int) -> None:
        with (source / "convert.log").open("a") as log:
            log.write("more\n")
        (source / f"new-{done}.txt").write_text("new")
        (source / "gone.txt").unlink(missing_ok=True)

    manifest = quantize(source, tmp_path / "out", progress=meddle)
    copied = (tmp_path / "out/convert.log").read_bytes()
    assert copied.startswith(b"begun\nmore\n")
    assert manifest.output["files"]["convert.log"]["sha256"] == hashlib.sha256(copied).hexdigest()
    assert not (tmp_path / "out/gone.txt").exists() and not list((tmp_path / "out").glob("new-*"))


def test_a_growing_log_does_not_void_finished_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_tiny_checkpoint(tmp_path / "source")
    (source / "convert.log").write_text("first\n")
    first = plan_quantize(source, tmp_path / "out").fingerprint
    (source / "convert.log").write_text("first\nsecond\n")
    (source / "another.log").write_text("")
    assert plan_quantize(source, tmp_path / "out").fingerprint == first
    (source / "generation_config.json").write_text("{}")
    assert plan_quantize(source, tmp_path / "out").fingerprint != first


def test_two_runs_at_once_do_not_mix(source: Path, tmp_path: Path) -> None:
    refused: list[UserError] = []

    def second(done: int, total: int) -> None:
        if not refused:
            try:
                quantize(source, tmp_path / "out")
            except UserError as error:
                refused.append(error)

    quantize(source, tmp_path / "out", progress=second)
    assert "another qconvert is writing" in str(refused[0])
    quantize(source, tmp_path / "straight")
    assert hashes(tmp_path / "out") == hashes(tmp_path / "straight")


def test_overwrite_replaces_when_all_is_written(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "out")
    with pytest.raises(UserError, match="out exists"):
        quantize(source, tmp_path / "out", scales="f32")
    quantize(source, tmp_path / "out", scales="f32", overwrite=True)
    manifest = Manifest.load(tmp_path / "out")
    assert manifest is not None
    assert manifest.recipe["scales"] == "f32"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_ragged_shapes_are_written_aligned_and_come_back(tmp_path: Path) -> None:
    """Odd widths make odd numbers of bytes; every tensor must still be readable by the safetensors library."""
    import safetensors.torch

    config = tiny_config(moe_intermediate_size=129, shared_expert_intermediate_size=37, hidden_size=131)
    source = write_tiny_checkpoint(tmp_path / "source", config)
    quantize(source, tmp_path / "out", scales="f32")
    theirs = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    ours = Checkpoint.open(tmp_path / "out")
    assert all(
        torch.equal(theirs[n].view(torch.uint8), ours.read(n).view(torch.uint8)) for n in ours.tensors if theirs[n].ndim
    )


def test_no_workers(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one worker"):
        quantize(source, tmp_path / "out", workers=0)


def test_torch_keeps_its_number_of_threads(source: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    quantize(source, tmp_path / "out", workers=2)
    assert torch.get_num_threads() == before


def test_manifest_of_a_newer_version_is_refused(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "out")
    path = tmp_path / "out" / MANIFEST
    record: dict[str, Any] = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"schema_version": 99}))
    with pytest.raises(UserError, match="newer qconvert"):
        Manifest.load(tmp_path / "out")
    path.write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        Manifest.load(tmp_path / "out")


def test_size_of_the_files_on_the_command_line(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "source")
    run = CliRunner()
    done = run.invoke(main, ["quantize", str(source), str(tmp_path / "out"), "--max-shard-size", "300 KB"])
    assert done.exit_code == 0, done.output
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")]
    assert len(sizes) > 3 and all(size < 400_000 for size in sizes)
    for text in ("many", "0", "5 apples", "5XB"):
        done = run.invoke(main, ["quantize", str(source), str(tmp_path / "no"), "--max-shard-size", text])
        assert done.exit_code == 2 and "not a size in bytes" in done.output, text
    assert not (tmp_path / "no").exists()

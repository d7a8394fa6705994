"""What the operating system refuses: one message and exit code 2, finished work kept; a bug: traceback and 70."""

import errno
import fcntl
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from qconvert.cli.commands import BUG, Commands
from qconvert.errors import UserError
from qconvert.manifest import Manifest
from qconvert.quantization import plan_quantize, quantize, run_plan
from qconvert.refusals import WAYS_OUT, refusal
from tests.filesystem.mounts import mounted
from tests.filesystem.sweep import sweep
from tests.tiny import write_tiny_checkpoint

ROOT = Path(__file__).parents[1]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "source")


@pytest.mark.parametrize("number", sorted(WAYS_OUT))
def test_every_number_has_a_message_with_its_parts(number: int, tmp_path: Path) -> None:
    said = refusal(OSError(number, os.strerror(number), str(tmp_path / "file")))
    assert said is not None
    assert os.strerror(number).lower() in said.what
    assert said.where == str(tmp_path / "file") and said.fix
    assert said.found is not None and errno.errorcode[number] in said.found


def test_permissions_come_with_mode_and_owner(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch(0o600)
    said = refusal(PermissionError(errno.EACCES, "Permission denied", str(file)))
    assert said is not None and said.found is not None
    assert f"{file} is -rw------- of user {os.geteuid()}" in said.found


def test_memory_and_threads(tmp_path: Path) -> None:
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")):
        said = refusal(error)
        assert said is not None and "not enough memory" in said.what
    said = refusal(RuntimeError("can't start new thread"))
    assert said is not None and "threads" in said.what and "--workers 1" in str(said.fix)


@pytest.mark.parametrize("bug", [RuntimeError("shapes differ"), KeyError("x"), AssertionError(), OSError("no number")])
def test_a_bug_is_not_taken_for_a_refusal(bug: Exception) -> None:
    assert refusal(bug) is None


@pytest.mark.parametrize(
    "error, code, shown",
    [
        (ZeroDivisionError("division by zero"), BUG, "Traceback"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "/place"), 2, "error: the system refuses: read-only"),
        (UserError("a slip"), 2, "error: a slip"),
        (click.UsageError("no such thing"), 2, "no such thing"),
    ],
)
def test_exit_codes_of_the_command_line(error: Exception, code: int, shown: str) -> None:
    def fails() -> None:
        raise error

    group = Commands(name="qconvert")
    group.get_command = lambda ctx, name: click.Command("fails", callback=fails)  # type: ignore[method-assign]
    done = CliRunner().invoke(group, ["fails"])
    assert done.exit_code == code
    assert shown in done.stderr and ("Traceback" in done.stderr) == (code == BUG)


def test_a_terminal_that_is_not_utf8_gets_its_verdict() -> None:
    code = "import click\nfrom qconvert.cli import main\n"
    code += "main.get_command = lambda ctx, name: click.Command(name, callback=lambda: print('≤ – 5'))\nmain(['x'])"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, b"? ? 5"), done.stderr.decode()


def test_a_folder_that_cannot_be_synced_is_a_warning(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sync = os.fsync

    def refuses(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").resolve().is_dir():
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        sync(handle)

    monkeypatch.setattr(os, "fsync", refuses)
    with caplog.at_level(logging.WARNING, "qconvert"):
        quantize(source, tmp_path / "out")
    assert Manifest.load(tmp_path / "out") is not None
    assert "cannot be synced" in caplog.text


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_lock_that_the_file_system_lacks_is_a_warning(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, number: int
) -> None:
    def refuses(handle: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuses)
    with caplog.at_level(logging.WARNING, "qconvert"):
        quantize(source, tmp_path / "out")
    assert Manifest.load(tmp_path / "out") is not None
    assert "knows no locks" in caplog.text


@pytest.mark.parametrize("call", ["pwrite", "rename"])
def test_a_place_without_the_writes_we_need_is_refused_before_the_work(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def refuses(*arguments: object, **more: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, call, refuses)
    if call == "rename":
        monkeypatch.setattr(Path, "rename", refuses)
    begun: list[int] = []
    with pytest.raises(UserError, match="cannot be written in this place"):
        quantize(source, tmp_path / "out", progress=lambda done, total, what="": begun.append(done))
    assert not begun
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_rename_that_fails_at_the_end_costs_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def refuses(self: Path, target: Path) -> Path:
        if Path(target).name == "out":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuses)
    with pytest.raises(UserError, match=r"busy[\s\S]*goes on from there"):
        quantize(source, tmp_path / "out")
    monkeypatch.undo()
    written: list[int] = []
    plan = plan_quantize(source, tmp_path / "out")
    run_plan(plan, progress=lambda done, total, what="": written.append(done))
    assert written == [] or min(written) == plan.bytes_in  # all shards were there: nothing is converted again


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of its own, as a container's volume is."""
    with mounted(tmp_path / "volume", "40m") as mount:
        yield mount


def test_a_mount_point_is_filled_from_inside(source: Path, tmp_path: Path, volume: Path) -> None:
    quantize(source, tmp_path / "straight")
    with pytest.raises(UserError, match=r"exists[\s\S]*mount point[\s\S]*--overwrite"):
        quantize(source, volume)
    for _ in range(2):  # an empty volume, then one that holds a checkpoint
        quantize(source, volume, overwrite=True)
        assert not [path for path in volume.iterdir() if path.name.startswith(".")]
        files = {path.name for path in volume.iterdir()}
        assert files == {path.name for path in (tmp_path / "straight").iterdir()}
        for name in files - {"qconvert.json"}:
            assert (volume / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()
    assert not list(tmp_path.glob(".volume*"))


def test_a_stopped_move_inside_of_a_mount_point_is_finished_by_the_next_run(
    source: Path, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def refuses(source: Path, place: Path) -> None:
        if Path(place).name == "config.json":
            raise KeyboardInterrupt
        link(source, place)

    monkeypatch.setattr(os, "link", refuses)
    with pytest.raises(KeyboardInterrupt):
        quantize(source, volume, overwrite=True)
    assert not (volume / "config.json").exists()
    monkeypatch.undo()
    quantize(source, volume, overwrite=True)
    assert Manifest.load(volume) is not None and (volume / "config.json").is_file()


@pytest.mark.slow
def test_every_call_may_fail() -> None:
    """A sample; `python -m tests.filesystem.sweep` tries all."""
    found = sweep(every=97, offset=5)
    if found is None:
        pytest.skip("no C compiler here")
    assert " 0 wrong" in found


@pytest.mark.slow
def test_the_sweep_sees_what_it_guards_against() -> None:
    """Without the messages a refusal is a traceback."""
    with pytest.raises(AssertionError, match="a traceback"):
        if sweep(every=500, offset=7, defect=True) is None:
            pytest.skip("no C compiler here")

"""The output folder: built beside its place under another name, put there complete by one rename.

    .DST.qconvert-partial/            shards, copies, index, config, manifest as they come
    .DST.qconvert-partial/.records/   one small JSON per finished file, and the fingerprint of the plan

Where DST is a mount point (a container's volume), nothing beside it is on its disk and nothing can take its name. Then
the partial folder lies inside, as DST/.qconvert-partial, and its files are moved up one by one, config.json last: a
folder without it is no checkpoint to any engine.

A mistake of the user removes the partial folder. A run that was killed, or that the system refused something, leaves
it, and the next run of the same plan goes on from its records; they go last, when nothing can fail any more. A lock on
the folder keeps two runs apart; the system drops it when a process dies.
"""

import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from qconvert.checkpoint import CONFIG, MANIFEST, write_durably
from qconvert.errors import UserError
from qconvert.refusals import ELSEWHERE, UNKNOWN_OPERATION, UNLOCKED_FOLDER, UNSYNCED_FOLDER, tolerated

RECORDS = ".records"
PARTIAL = "qconvert-partial"
NO_OUTPUT = frozenset({"lost+found", f".{PARTIAL}"})  # what a fresh volume may hold, and our own
log = logging.getLogger("qconvert")


class Destination:
    """A partial output folder that this process holds the lock of."""

    def __init__(self, final: Path) -> None:
        self.final = final.resolve()
        self.inside = os.path.ismount(self.final)
        beside = self.final.with_name(f".{self.final.name}.{PARTIAL}")
        self.folder = self.final / f".{PARTIAL}" if self.inside else beside

    def prepare(self, fingerprint: str, *, resume: bool) -> None:
        """Take over what an earlier run of the same plan finished, otherwise start afresh. Tries what will be needed
        at the end: a place that cannot do it is refused before the work."""
        if self.folder.exists() and not (resume and self.record("plan") == {"fingerprint": fingerprint}):
            for entry in self.folder.iterdir():
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        (self.folder / RECORDS).mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.rglob("*.tmp"):
            leftover.unlink()
        _try_place(self.folder)
        self.set_record("plan", {"fingerprint": fingerprint})

    def record(self, name: str) -> dict[str, Any] | None:
        """What an earlier run noted about a finished piece of work; None for a note that is not whole."""
        path = self._record_path(name)
        if not path.is_file():
            return None
        try:
            return cast(dict[str, Any], json.loads(path.read_bytes()))
        except ValueError:
            return None

    def finished(self, name: str) -> dict[str, Any] | None:
        """The record of a piece of work, if its file ("out:FILE") is still there."""
        record = self.record(name)
        if record is not None and name.startswith("out:"):
            path = self.folder / name.removeprefix("out:")
            if not path.is_file() or path.stat().st_size != record["bytes"]:
                return None
        return record

    def set_record(self, name: str, record: dict[str, Any]) -> None:
        """Note that a piece of work is finished and on the disk."""
        path = self._record_path(name)
        temporary = path.with_suffix(".tmp")
        write_durably(temporary, json.dumps(record).encode())
        temporary.replace(path)

    @property
    def holds_work(self) -> bool:
        """Whether an earlier piece of work is finished here."""
        return any((self.folder / RECORDS).glob("out:*.json"))

    def check_space(self, needed: int) -> None:
        """Refuse before the first byte if the disk cannot hold the rest of the output."""
        available = shutil.disk_usage(self.folder).free
        if needed > available:
            raise disk_full(self.final, needed, available)

    def publish(self, *, overwrite: bool) -> None:
        """Put the finished folder into its place."""
        _sync(self.folder)
        if not overwrite and self.final.exists():
            raise _exists(self.final)
        if self.inside:
            self._move_up()
            return
        old = self.final.with_name(f".{self.final.name}.qconvert-old")
        if old.exists() and self.final.exists():
            shutil.rmtree(old)
        replaced = self.final.exists()
        if replaced:
            self.final.rename(old)
        try:
            self.folder.rename(self.final)
        except OSError:
            if replaced:
                old.rename(self.final)
            raise
        _sync(self.final.parent)
        self._drop(self.final / RECORDS)
        if old.exists():
            self._drop(old)

    def _move_up(self) -> None:
        """Inside of a mount point: the old config.json goes first, the new one comes last."""
        ours = sorted(path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        new = [path for path in ours if path.parts[0] != RECORDS]
        (self.final / CONFIG).unlink(missing_ok=True)
        for entry in self.final.iterdir():
            if entry.name in NO_OUTPUT:
                continue
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        for path in sorted(new, key=lambda path: path == Path(CONFIG)):
            (self.final / path.parent).mkdir(parents=True, exist_ok=True)
            # A second name instead of a move: until config.json is there too, the partial folder stays whole.
            _second_name(self.folder / path, self.final / path)
        _sync(self.final)
        self._drop(self.folder)

    def _drop(self, folder: Path) -> None:
        """Remove what is not needed any more, behind everything that matters: a refusal is only worth a word."""
        try:
            shutil.rmtree(folder)
        except OSError as error:
            log.warning("%s is not needed any more and could not be removed: %s", folder, error.strerror)

    def discard(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the partial folder for this process."""
        self.folder.mkdir(exist_ok=True)
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            self._lock(handle)
            yield
        finally:
            os.close(handle)

    def _lock(self, handle: int) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another qconvert is writing {self.final}",
                where=str(self.folder),
                expected="one run at a time",
                found="the lock is taken",
                fix="wait for it to end",
            ) from error
        except OSError as error:
            if not tolerated(error, UNLOCKED_FOLDER):
                raise
            log.warning("%s: the file system knows no locks; see that no second run writes here", self.folder)

    def _record_path(self, name: str) -> Path:
        return self.folder / RECORDS / (name.replace("%", "%25").replace("/", "%2F") + ".json")


def check_destination(source: Path, final: Path, *, overwrite: bool) -> None:
    """Refuse a place that is taken, or that would mix source and output."""
    src, dst = source.resolve(), final.resolve()
    if dst == src or dst.is_relative_to(src) or src.is_relative_to(dst):
        relation = "is" if dst == src else "is inside" if dst.is_relative_to(src) else "contains"
        raise UserError(
            f"the destination {relation} the source",
            where=f"{final}, {source}",
            expected="two folders, neither inside of the other",
            found=f"{dst} and {src}",
            fix="give another folder",
        )
    if not dst.parent.is_dir():
        raise UserError(
            f"no such folder: {dst.parent}",
            where=f"the destination {final}",
            expected="a folder that is there, to make the new one in",
            found="nothing" if not dst.parent.exists() else "a file",
            fix=f"mkdir -p {dst.parent}",
        )
    if not final.exists() and not final.is_symlink():
        return
    if not overwrite:
        raise _exists(final)
    held = {entry.name for entry in final.iterdir()} - NO_OUTPUT if final.is_dir() else set()
    # Inside of a mount point a run that was stopped while it published leaves files without their config.json.
    begun = os.path.ismount(final) and (final / f".{PARTIAL}" / RECORDS).is_dir()
    ours = final.is_dir() and (not held or begun or bool(held & {MANIFEST, CONFIG}))
    if not ours or final.is_symlink():
        raise UserError(
            f"{final} is not a checkpoint, so it is not overwritten",
            where=str(final),
            expected=f"an empty folder, or one with {CONFIG}",
            found="a link" if final.is_symlink() else f"{len(held):,} other files" if final.is_dir() else "a file",
            fix="remove it yourself, or give another folder",
        )


def disk_full(final: Path, needed: int, available: int) -> UserError:
    """The disk cannot hold the output."""
    return UserError(
        "not enough disk space",
        where=str(final.parent),
        expected=f"{needed} bytes for what is still to be written",
        found=f"{available} bytes available",
        fix="free space, or give a destination on another disk",
    )


def _exists(final: Path) -> UserError:
    return UserError(
        f"{final} exists",
        where=str(final),
        expected="a name that nothing has yet",
        found="a mount point" if os.path.ismount(final) else "a folder" if final.is_dir() else "a file",
        fix="give another folder, or --overwrite to replace it when all is written",
    )


def _try_place(folder: Path) -> None:
    """Writes at any place of a file, and names that change: what the work needs, tried on a few bytes."""
    tried, renamed = folder / ".try.tmp", folder / ".tried.tmp"
    try:
        tried.mkdir()
        with (tried / "a").open("wb", buffering=0) as file:
            os.pwrite(file.fileno(), b"b", 1)
            os.pwrite(file.fileno(), b"a", 0)
        (tried / "a").rename(tried / "b")
        tried.rename(renamed)
        whole = (renamed / "b").read_bytes() == b"ab"
    except OSError as error:
        if not tolerated(error, UNKNOWN_OPERATION):
            raise
        raise _unfit(folder, f"{error.strerror} ({error.filename or 'a write at a place of its own'})") from error
    finally:
        for place in (tried, renamed):
            shutil.rmtree(place, ignore_errors=True)
    if not whole:
        raise _unfit(folder, "other bytes than were written")


def _unfit(folder: Path, found: str) -> UserError:
    return UserError(
        "a model cannot be written in this place",
        where=str(folder.parent),
        expected="a file system with writes at any place of a file, and with renaming",
        found=found,
        fix=ELSEWHERE,
    )


def _second_name(source: Path, place: Path) -> None:
    """A hard link, or a move where the file system has none."""
    try:
        os.link(source, place)
    except OSError:
        source.rename(place)


def _sync(folder: Path) -> None:
    """Wait until the folder's entries are on the disk; some file systems do that by themselves, or never."""
    try:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if not tolerated(error, UNSYNCED_FOLDER):
            raise
        log.warning("%s: a folder cannot be synced here (%s); its files are", folder, error.strerror)

"""The output folder: built beside its place under another name, put there complete by one rename.

    .DST.qconvert-partial/            shards, copies, index, config, manifest as they come
    .DST.qconvert-partial/.records/   one small JSON per finished file, and the fingerprint of the plan

A failure that the user can mend removes the partial folder. A killed run leaves it, and the next run of the same plan
goes on from its records. A lock on it keeps two runs apart; the system drops the lock when a process dies.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from qconvert.checkpoint import CONFIG, MANIFEST, write_durably
from qconvert.errors import UserError

RECORDS = ".records"


class Destination:
    """A partial output folder that this process holds the lock of."""

    def __init__(self, final: Path) -> None:
        self.final = final.resolve()
        self.folder = self.final.with_name(f".{self.final.name}.qconvert-partial")

    def prepare(self, fingerprint: str, *, resume: bool) -> None:
        """Take over what an earlier run of the same plan finished, otherwise start afresh."""
        if self.folder.exists() and not (resume and self.record("plan") == {"fingerprint": fingerprint}):
            for entry in self.folder.iterdir():
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        (self.folder / RECORDS).mkdir(parents=True, exist_ok=True)
        for leftover in self.folder.glob("*.tmp"):
            leftover.unlink()
        self.set_record("plan", {"fingerprint": fingerprint})

    def record(self, name: str) -> dict[str, Any] | None:
        """What an earlier run noted about a finished piece of work."""
        path = self._record_path(name)
        return cast(dict[str, Any], json.loads(path.read_bytes())) if path.is_file() else None

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

    def check_space(self, needed: int) -> None:
        """Refuse before the first byte if the disk cannot hold the rest of the output."""
        available = shutil.disk_usage(self.folder).free
        if needed > available:
            raise disk_full(self.final, needed, available)

    def publish(self, *, overwrite: bool) -> None:
        """Put the finished folder into its place."""
        shutil.rmtree(self.folder / RECORDS)
        _sync(self.folder)
        if not overwrite and self.final.exists():
            raise _exists(self.final)
        old = self.final.with_name(f".{self.final.name}.qconvert-old")
        if self.final.exists():
            self.final.rename(old)
        self.folder.rename(self.final)
        _sync(self.final.parent)
        if old.exists():
            shutil.rmtree(old)

    def discard(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.folder)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the partial folder for this process."""
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write into {self.final.parent}", found=str(error)) from error
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
                f"another qconvert is writing {self.final}", where=str(self.folder), fix="wait for it to end"
            ) from error

    def _record_path(self, name: str) -> Path:
        return self.folder / RECORDS / (name.replace("%", "%25").replace("/", "%2F") + ".json")


def check_destination(source: Path, final: Path, *, overwrite: bool) -> None:
    """Refuse a place that is taken, or that would mix source and output."""
    src, dst = source.resolve(), final.resolve()
    if dst == src or dst.is_relative_to(src) or src.is_relative_to(dst):
        relation = "is" if dst == src else "is inside" if dst.is_relative_to(src) else "contains"
        raise UserError(f"the destination {relation} the source", where=f"{final}, {source}", fix="give another folder")
    if not dst.parent.is_dir():
        raise UserError(f"no such folder: {dst.parent}", where=f"the destination {final}", fix="create it first")
    if not final.exists() and not final.is_symlink():
        return
    if not overwrite:
        raise _exists(final)
    ours = final.is_dir() and ((final / MANIFEST).is_file() or (final / CONFIG).is_file() or not any(final.iterdir()))
    if not ours or final.is_symlink():
        raise UserError(
            f"{final} is not a checkpoint, so it is not overwritten",
            expected=f"an empty folder, or one with {CONFIG}",
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
    return UserError(f"{final} exists", fix="give another folder, or --overwrite to replace it when all is written")


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

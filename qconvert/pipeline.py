"""Running a plan: one shard per worker, a few megabytes of one tensor in memory at a time.

Workers are threads, since torch and the hash functions release the interpreter while they compute. Each pins torch to
one thread, so that the number of workers is the number of cores used. Every piece of work (convert a shard, hash a
source file, copy a file) ends in a record on disk, and a piece whose record is there is not done again.
"""

import errno
import functools
import platform
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from qconvert.checkpoint import (
    CONFIG,
    INDEX,
    MANIFEST,
    Checkpoint,
    copy_durably,
    hash_file,
    hub_identity,
    write_durably,
    write_index,
)
from qconvert.destination import Destination, disk_full
from qconvert.errors import UserError
from qconvert.manifest import Manifest
from qconvert.plan import Plan, ShardJob, source_state
from qconvert.shard import convert_shard

Progress = Callable[[int, int], None]
Record = dict[str, Any]
ENTRY_BYTES = 512  # more than a tensor's lines in a header and in the index take


class Stopped(Exception):
    """Another worker failed, or the user pressed Ctrl-C; raised inside workers only."""


def run_plan(
    plan: Plan, *, workers: int = 1, overwrite: bool = False, resume: bool = True, progress: Progress | None = None
) -> Manifest:
    """Do everything in the plan and publish the folder."""
    if workers < 1:
        raise UserError("at least one worker is needed", found=str(workers), fix="give --workers 1 or more")
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    checkpoint = Checkpoint.open(plan.source)
    destination = Destination(Path(plan.destination))
    with destination.locked():
        try:
            _check_unchanged(plan, checkpoint)
            destination.prepare(plan.fingerprint, resume=resume)
            destination.check_space(_missing_bytes(plan, destination))
            records = _Run(plan, checkpoint, destination, progress).execute(workers)
            _check_unchanged(plan, checkpoint)
            _write_metadata(plan, destination.folder, records)
            run = {"started": started, "wall_seconds": round(time.monotonic() - clock, 3), "workers": workers}
            manifest = _manifest(plan, records, run)
            write_durably(destination.folder / MANIFEST, manifest.to_text().encode())
            destination.publish(overwrite=overwrite)
        except UserError:
            destination.discard()
            raise
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            needed = _missing_bytes(plan, destination)
            available = shutil.disk_usage(destination.folder).free
            destination.discard()
            raise disk_full(destination.final, needed, available) from error
    return manifest


class _Run:
    """The pieces of work of one run and what they share."""

    def __init__(self, plan: Plan, checkpoint: Checkpoint, destination: Destination, progress: Progress | None) -> None:
        self.plan, self.checkpoint, self.destination, self.progress = plan, checkpoint, destination, progress
        self.done = 0
        self.lock = threading.Lock()
        self.stop = threading.Event()

    def execute(self, workers: int) -> dict[str, Record]:
        """All records: "out:FILE" and "in:FILE" to {bytes, sha256}. Stops all workers at the first failure."""
        pieces = self._pieces()
        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(workers, "qconvert", torch.set_num_threads, (1,))
        try:
            futures = {name: pool.submit(self._recorded, name, piece) for name, piece in pieces.items()}
            finished, _ = wait(futures.values(), return_when=FIRST_EXCEPTION)
            failed = [future for future in finished if future.exception() is not None]
            if failed:
                failed[0].result()
            return {name: future.result() for name, future in futures.items()}
        finally:
            self.stop.set()
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(threads)

    def _pieces(self) -> dict[str, Callable[[], Record]]:
        """In the order of the source: each source file is hashed right after it was read, while it is still cached."""
        last_use = {
            self.checkpoint.tensors[name].file: job.file
            for job in self.plan.jobs
            for tensor in job.tensors
            for name in tensor.inputs.values()
        }
        pieces: dict[str, Callable[[], Record]] = {}
        for job in self.plan.jobs:
            pieces["out:" + job.file] = functools.partial(self._convert, job)
            for file in [file for file, last in last_use.items() if last == job.file]:
                pieces["in:" + file] = functools.partial(_file_record, self.checkpoint.file(file))
        for file in self.plan.source_files:
            pieces.setdefault("in:" + file, functools.partial(_file_record, self.checkpoint.file(file)))
        for file in self.plan.copies:
            pieces["out:" + file] = functools.partial(self._copy, file)
        return pieces

    def _recorded(self, name: str, piece: Callable[[], Record]) -> Record:
        if self.stop.is_set():
            raise Stopped
        record = self.destination.finished(name)
        if record is None:
            record = piece()
            self.destination.set_record(name, record)
        else:
            self._advance(record.get("bytes_read", 0))
        return record

    def _convert(self, job: ShardJob) -> Record:
        read = 0

        def advance(count: int) -> None:
            nonlocal read
            if self.stop.is_set():
                raise Stopped
            read += count
            self._advance(count)

        path = self.destination.folder / job.file
        convert_shard(self.checkpoint, job, path, self.plan.recipe, advance)
        return _file_record(path) | {"bytes_read": read}

    def _copy(self, name: str) -> Record:
        path = self.destination.folder / name
        copy_durably(self.checkpoint.file(name), path)
        return _file_record(path)

    def _advance(self, count: int) -> None:
        with self.lock:
            self.done += count
            if self.progress is not None and count:
                self.progress(self.done, self.plan.bytes_in)


def _file_record(path: Path) -> Record:
    return {"bytes": path.stat().st_size, "sha256": hash_file(path)}


def _check_unchanged(plan: Plan, checkpoint: Checkpoint) -> None:
    """Before and after: the files are still those that the plan was made for."""
    now = source_state(checkpoint)
    changed = sorted({file for file, _ in set(now.items()) ^ set(plan.source_files.items())})
    if changed:
        raise UserError(
            f"{changed[0]} changed during the conversion", where=plan.source, fix="run the conversion again"
        )


def _missing_bytes(plan: Plan, destination: Destination) -> int:
    """Bytes still to be written: tensors, headers, index, configuration and copies without a record."""
    jobs = [job for job in plan.jobs if destination.finished("out:" + job.file) is None]
    copies = [name for name in plan.copies if destination.finished("out:" + name) is None]
    tensors = sum(job.nbytes for job in jobs) + ENTRY_BYTES * plan.counts["tensors_out"]
    return tensors + sum(plan.source_files[name][0] for name in copies) + 2 * len(plan.config_text)


def _write_metadata(plan: Plan, folder: Path, records: dict[str, Record]) -> None:
    """Index and config, after all shards."""
    write_index(folder, {job.file: job.specs for job in plan.jobs})
    write_durably(folder / CONFIG, plan.config_text.encode())
    for name in (INDEX, CONFIG):
        if (folder / name).is_file():
            records["out:" + name] = _file_record(folder / name)


def _manifest(plan: Plan, records: dict[str, Record], run: dict[str, Any]) -> Manifest:
    files: dict[str, dict[str, Record]] = {"in": {}, "out": {}}
    for name, record in sorted(records.items()):
        side, _, file = name.partition(":")
        files[side][file] = {"bytes": record["bytes"], "sha256": record["sha256"]}
    return Manifest(
        qconvert=plan.version,
        operation=plan.operation,
        recipe=plan.recipe,
        source={**hub_identity(Path(plan.source)), "files": files["in"]},
        output={"files": files["out"]},
        counts=plan.counts,
        warnings=plan.warnings,
        notes=plan.notes,
        run={**run, "source": plan.source, "python": platform.python_version(), "torch": str(torch.__version__)},
    )

"""Running a plan: one tensor per worker at a time, a few megabytes of each in memory.

Workers are threads, since torch and the hash functions release the interpreter while they compute. Each pins torch to
one thread, so that the number of workers is the number of cores used; while a finished shard is hashed, one thread
more waits for the disk. All take work from one list in the order of the plan: the hash of a source file, then the
tensors of the shards that are made from it. Whoever converts the last tensor of a shard finishes the shard, while the
others go on with the next.

Every finished piece of work (a shard converted, a source file hashed, a file copied) ends in a record on disk, and a
piece whose record is there is not done again. What the system refuses (a full disk, a lost mount, no threads) leaves
finished pieces where they are; a mistake of the user, such as a NaN in a weight, leaves nothing.
"""

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import torch

from qconvert.calibrated import KEY, Calibrated, Statistics, open_walk
from qconvert.checkpoint import Checkpoint, copy_durably
from qconvert.destination import Destination
from qconvert.errors import UserError
from qconvert.finishing import Record, file_record, write_metadata
from qconvert.manifest import Manifest
from qconvert.plan import Plan, ShardJob, TensorJob, changed_since, read_by_engines
from qconvert.quantizers import OnCpu, Quantizer
from qconvert.refusals import is_full, refusal
from qconvert.schemes.int4 import WEIGHTED
from qconvert.shard import Conversion

Work = Iterator[Callable[[], None]]
log = logging.getLogger("qconvert")
ENTRY_BYTES = 1024  # more than a tensor's lines in a header, in the index and in the report take


class Progress(Protocol):
    """Bytes done, bytes in all, and what is being done where that is no conversion."""

    def __call__(self, done: int, total: int, what: str = ..., /) -> None: ...


def run_plan(
    plan: Plan,
    *,
    workers: int = 1,
    overwrite: bool = False,
    resume: bool = True,
    progress: Progress | None = None,
    quantizer: Quantizer | None = None,
) -> Manifest:
    """Do everything in the plan and publish the folder. The quantizer, a CPU by default, does not change a byte."""
    quantizer = quantizer or OnCpu()
    if workers < 1:
        raise UserError("at least one worker is needed", found=str(workers), fix="give --workers 1 or more")
    started, clock = datetime.now(UTC).isoformat(timespec="seconds"), time.monotonic()
    checkpoint = Checkpoint.open(plan.source)
    destination = Destination(Path(plan.destination))
    try:
        with destination.locked(), _mistakes_leave_nothing(destination):
            _check_unchanged(plan, checkpoint)
            destination.prepare(plan.fingerprint, resume=resume)
            destination.check_space(_missing_bytes(plan, checkpoint, destination))
            records = _Run(plan, checkpoint, destination, quantizer, progress).execute(workers)
            _check_unchanged(plan, checkpoint)
            wall = round(time.monotonic() - clock, 3)
            run = {"started": started, "wall_seconds": wall, "workers": workers, "device": quantizer.place}
            manifest = write_metadata(plan, checkpoint, destination.folder, records, run)
            destination.publish(overwrite=overwrite)
    except (OSError, MemoryError, RuntimeError) as error:
        said = refusal(error)
        if said is None:
            raise
        raise _refused(plan, checkpoint, destination, error, said) from error
    return manifest


@contextmanager
def _mistakes_leave_nothing(destination: Destination) -> Iterator[None]:
    try:
        yield
    except UserError:
        destination.discard()
        raise


def _refused(
    plan: Plan, checkpoint: Checkpoint, destination: Destination, error: BaseException, said: UserError
) -> UserError:
    """What the system said, what it was needed for, and what stays for the next run."""
    what, fix, expected = said.what, said.fix or "", said.expected
    if isinstance(error, OSError) and is_full(error):
        what = f"not enough disk space: {what}"
        expected = f"{_missing_bytes(plan, checkpoint, destination):,} bytes for what is still to be written"
    if destination.holds_work:
        fix += f"; what is finished is in {destination.folder}, and the same command goes on from there"
    else:
        destination.discard()
    where = said.where or str(destination.final)
    return UserError(what, where=where, expected=expected, found=said.found, fix=fix)


class _Run:
    """The work of one run and what the workers share."""

    def __init__(
        self,
        plan: Plan,
        checkpoint: Checkpoint,
        destination: Destination,
        quantizer: Quantizer,
        progress: Progress | None,
    ) -> None:
        self.plan, self.checkpoint, self.destination, self.progress = plan, checkpoint, destination, progress
        self.quantizer = quantizer
        self.records: dict[str, Record] = {}
        self.unfinished: set[Conversion] = set()
        self.done = 0
        self.counting, self.taking = threading.Lock(), threading.Lock()
        self.stop = threading.Event()
        self.calibrated: Calibrated | None = None

    def execute(self, workers: int) -> dict[str, Record]:
        """All records: "out:FILE" and "in:FILE" to {bytes, sha256}. Stops all workers at the first failure."""
        if KEY in self.plan.recipe:
            names = [tensor.name for job in self.plan.jobs for tensor in job.tensors if self._needs_inputs(tensor)]
            walk = open_walk(Path(self.plan.source), self.plan.recipe, names, workers, self._say)
            self.calibrated = Calibrated(walk)
        work = self._work()
        threads = torch.get_num_threads()
        pool = ThreadPoolExecutor(workers, "qconvert", torch.set_num_threads, (1,))
        try:
            finished, _ = wait([pool.submit(self._take, work) for _ in range(workers)], return_when=FIRST_EXCEPTION)
            for worker in finished:
                worker.result()
            return self.records
        finally:
            self.stop.set()
            pool.shutdown()
            for conversion in self.unfinished:
                conversion.discard()
            torch.set_num_threads(threads)

    def _take(self, work: Work) -> None:
        """A worker: one piece of work after the other, until there is none or another worker failed."""
        while not self.stop.is_set():
            with self.taking:
                piece = next(work, None)
            if piece is None:
                return
            piece()

    def _work(self) -> Work:
        """In the order of the source. A file is hashed as its conversion begins: one finds it cached by the other."""
        hashed: set[str] = set()
        for job in self.plan.jobs:
            inputs = [name for tensor in job.tensors for name in tensor.inputs.values()]
            for file in dict.fromkeys(self.checkpoint.tensors[name].file for name in inputs):
                if file not in hashed:
                    hashed.add(file)
                    yield functools.partial(self._record, "in:" + file, self._hash_source, file)
            yield from self._shard(job)
        for file in self.plan.source_files:
            if file not in hashed:
                yield functools.partial(self._record, "in:" + file, self._hash_source, file)
        for file in self.plan.copies:
            if read_by_engines(file):
                yield functools.partial(self._record, "out:" + file, self._copy, file)
            else:
                yield functools.partial(self._copy_as_it_is, file)

    def _shard(self, job: ShardJob) -> Work:
        """A piece of work for each tensor, unless an earlier run has finished the shard."""
        record = self.destination.finished("out:" + job.file)
        if record is not None and "tensors" in record:
            self.records["out:" + job.file] = record
            self._advance(record.get("bytes_read", 0))
            return
        path = self.destination.folder / job.file
        conversion = Conversion(self.checkpoint, job, path, self.plan.recipe, self.quantizer)
        self.unfinished.add(conversion)
        for tensor in job.tensors:
            # Statistics are taken here, where tensors come in their order, and not by whichever worker is first. The
            # others wait for a layer to be walked through: whatever they could take next needs it, too.
            calibrated = self.calibrated if self._needs_inputs(tensor) else None
            statistics = None if calibrated is None else calibrated.take(tensor.name)
            yield functools.partial(self._convert, conversion, tensor, statistics)
            del statistics  # the worker alone holds them now

    def _needs_inputs(self, tensor: TensorJob) -> bool:
        """Whether the tensor's method looks at its inputs; in a mixed recipe that of FP8 does not."""
        if tensor.action != "quantize" or tensor.scheme is None:
            return False
        return self.plan.recipe["schemes"][tensor.scheme].get("method") in WEIGHTED

    def _convert(self, conversion: Conversion, tensor: TensorJob, statistics: Statistics | None) -> None:
        conversion.convert(tensor, statistics)
        self._advance(conversion.bytes_read(tensor))
        if conversion.was_last():
            name = "out:" + conversion.job.file
            self.records[name] = conversion.finish()
            self.destination.set_record(name, self.records[name])
            self.unfinished.remove(conversion)

    def _record(self, name: str, piece: Callable[[str], Record], file: str) -> None:
        """Do a piece of work and keep its record, unless there is one of an earlier run."""
        record = self.destination.finished(name)
        if record is None:
            record = piece(file)
            self.destination.set_record(name, record)
        self.records[name] = record

    def _hash_source(self, name: str) -> Record:
        return file_record(self.checkpoint.file(name))

    def _copy(self, name: str) -> Record:
        path = self.destination.folder / name
        copy_durably(self.checkpoint.file(name), path)
        return file_record(path)

    def _copy_as_it_is(self, name: str) -> None:
        """A file that no engine reads, such as a log: whatever it holds now; gone is no reason to stop."""
        if (self.checkpoint.root / name).is_file():
            self.records["out:" + name] = self.records["in:" + name] = self._copy(name)
        else:
            log.warning("%s was there when the conversion began, and is not any more: not copied", name)

    def _say(self, what: str) -> None:
        if self.progress is not None:
            self.progress(self.done, self.plan.bytes_in, what)

    def _advance(self, count: int) -> None:
        with self.counting:
            self.done += count
            if self.progress is not None and count:
                self.progress(self.done, self.plan.bytes_in)


def _check_unchanged(plan: Plan, checkpoint: Checkpoint) -> None:
    """Before and after: the model's files are still those that the plan was made for."""
    changed = changed_since(checkpoint, plan.source_files)
    if changed:
        raise UserError(
            f"{changed[0]} changed during the conversion",
            where=plan.source,
            expected="files of the model that stay as they are while it is converted",
            found=f"{len(changed)} that changed or are gone",
            fix="see who writes there, and run the conversion again",
        )


def _missing_bytes(plan: Plan, checkpoint: Checkpoint, destination: Destination) -> int:
    """Bytes still to be written: tensors, headers, index, configuration and copies without a record."""
    jobs = [job for job in plan.jobs if destination.finished("out:" + job.file) is None]
    copies = [name for name in plan.copies if destination.finished("out:" + name) is None]
    tensors = sum(job.nbytes for job in jobs) + ENTRY_BYTES * plan.counts["tensors_out"]
    sizes = [checkpoint.file(name).stat().st_size for name in copies if (checkpoint.root / name).is_file()]
    return tensors + sum(sizes) + 2 * len(plan.config_text)

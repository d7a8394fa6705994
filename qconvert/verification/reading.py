"""One walk over all bytes of a folder: each shard's hash beside the checks of its tensors, so that one finds the file
in the page cache when the other has read it.

Workers are threads, each with a tensor or a file at a time. Answers are put together in the order of the questions, so
that a report does not depend on the number of workers.
"""

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qconvert.manifest import Manifest
from qconvert.verification.files import wrong_with_file
from qconvert.verification.numbers import Source, wrong_with_numbers
from qconvert.verification.report import Check, Findings, Wrong
from qconvert.verification.stored import Stored

AHEAD = 1000  # questions a worker that may be answered while an earlier one, of a whole shard perhaps, is not

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Question:
    """About one tensor or file: its size, and what finds out what is wrong with it."""

    subject: str
    size: int
    ask: Callable[[], list[Wrong]]


def check_contents(
    stored: Stored, source: Source | None, manifest: Manifest | None, workers: int, progress: Progress | None
) -> list[Check]:
    """Numbers, with a source their equality and bounds, and with a manifest the hash of every file."""
    found = [
        Findings("values", "all kept values are finite, all scales usable, all codes plausible"),
        Findings("kept", f"{len(stored.kept):,} tensors equal the source byte for byte"),
        Findings("bounds", f"{len(stored.weights):,} quantized weights are within their scheme's bound of the source"),
    ]
    findings = {entry.name: entry for entry in found[: 1 if source is None else 3]}
    files = {} if manifest is None else manifest.output["files"]
    questions = list(_questions(stored, source, files))
    damaged: dict[str, str] = {}
    for question, wrong in _answers(questions, workers, progress):
        for check, text in wrong:
            if check == "manifest":
                damaged[question.subject] = text
            else:
                findings[check].add(question.subject, text)
    if manifest is not None:
        findings["manifest"] = Findings("manifest", f"{len(files)} files have the size and sha256 of the manifest")
        for name in files:
            if name in damaged:
                findings["manifest"].add(name, damaged[name])
    return [entry.check() for entry in findings.values()]


def _questions(stored: Stored, source: Source | None, files: Mapping[str, Any]) -> Iterator[Question]:
    """Tensors in the order of the folder, each shard's hash before its tensors, other files at the end."""
    root, rest, kept = stored.checkpoint.root, dict(files), frozenset(stored.kept)
    first_parts = {next(iter(weight.parts.values())): name for name, weight in stored.weights.items()}
    for name, info in stored.checkpoint.tensors.items():
        if info.file in rest:
            yield _file_question(root, info.file, rest.pop(info.file))
        weight = first_parts.get(name, name)  # a quantized weight is asked about where its first part stands
        yield Question(weight, info.nbytes, functools.partial(wrong_with_numbers, stored, source, kept, weight))
    for file, record in rest.items():
        yield _file_question(root, file, record)


def _file_question(folder: Path, file: str, record: Mapping[str, Any]) -> Question:
    return Question(file, record["bytes"], functools.partial(wrong_with_file, folder, file, record))


def _answers(
    questions: Sequence[Question], workers: int, progress: Progress | None
) -> Iterator[tuple[Question, list[Wrong]]]:
    """Each question with its answer, in order."""
    total, done, counting = sum(question.size for question in questions), 0, threading.Lock()

    def answer(question: Question) -> list[Wrong]:
        nonlocal done
        wrong = question.ask()
        with counting:
            done += question.size
            if progress is not None:
                progress(done, total, question.subject)
        return wrong

    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(workers, "qconvert-verify", torch.set_num_threads, (1,))
    waiting: deque[tuple[Question, Future[list[Wrong]]]] = deque()
    try:
        for question in questions:
            waiting.append((question, pool.submit(answer, question)))
            if len(waiting) > AHEAD * workers:
                first, future = waiting.popleft()
                yield first, future.result()
        for first, future in waiting:
            yield first, future.result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)

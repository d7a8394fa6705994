"""Progress of a comparison on stderr: the stage, how much of it is done, and the time that is left.

On a terminal it is a bar drawn and wiped by rich; in a log it is one plain line every ten seconds and at the end of
each stage that took so long.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

QUIET_INTERVAL = 10.0  # seconds between lines of a log


class StageProgress:
    """`with StageProgress() as progress: compare(..., progress=progress)`; called with stage, done, total."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        console = Console(file=self.stream)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task = self.bar.add_task("", total=None)
        self.stage = ""
        self.started = self.last_line = time.monotonic()

    def __enter__(self) -> StageProgress:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Show that `done` of `total` steps of a stage are behind us."""
        now = time.monotonic()
        if stage != self.stage:
            self.stage, self.started = stage, now
            self.bar.reset(self.task, description=stage, total=total)
        self.bar.update(self.task, completed=done, total=total)
        if self.bar.disable and now - self.last_line >= QUIET_INTERVAL:
            self.last_line = now
            left = (now - self.started) / done * (total - done) if done else 0.0
            self.stream.write(f"{stage}: {done} of {total}, {left:.0f} s left\n")
            self.stream.flush()

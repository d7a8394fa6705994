"""The progress bar on stderr: what is done of how many bytes, GB/s, and the time that is left.

On a terminal it is drawn and wiped by rich; into a file or a pipe it writes one plain line every ten seconds, so that
a log shows a job is alive. Results never go here: stdout stays clean for `--json`.
"""

import sys
import time
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from qconvert.sizes import format_bytes

QUIET_INTERVAL = 10.0  # seconds between lines of a log


class ProgressBar:
    """`with ProgressBar("quantize") as progress: work(progress=progress)`.

    The work calls it with bytes done, bytes in all, and what is being done.
    """

    def __init__(self, title: str, stream: TextIO | None = None) -> None:
        self.title = title
        self.stream = stream or sys.stderr
        self.started = self.last_line = time.monotonic()
        console = Console(file=self.stream)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[what]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.task: TaskID = self.bar.add_task(title, total=None, what="")

    def __enter__(self) -> "ProgressBar":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def __call__(self, done: int, total: int, what: str = "") -> None:
        """Show the state of the work; cheap enough to be called for every tensor."""
        if not self.bar.disable:
            self.bar.update(self.task, completed=done, total=total, what=what)
            return
        now = time.monotonic()
        if now - self.last_line >= QUIET_INTERVAL:
            self.last_line = now
            self.stream.write(f"{self.title}: {plain_line(done, total, now - self.started)} {what}\n")
            self.stream.flush()


def plain_line(done: int, total: int, seconds: float) -> str:
    """One line of a log: "12.0 GB of 80.0 GB, 1.20 GB/s, 57 s left"."""
    speed = done / seconds
    left = f", {(total - done) / speed:.0f} s left" if speed else ""
    return f"{format_bytes(done)} of {format_bytes(total)}, {speed / 1e9:.2f} GB/s{left}"

"""A file system that refuses: every call with which `quantize` changes a file fails once, with each of several numbers.

    python -m tests.filesystem.sweep [--every N] [--offset N] [--defect]

For the k-th call and each number: exit code 2 and one message (or 0, where the work can go on without the call), no
traceback, the source untouched, nothing half-written under the final name; and the same command afterwards ends in the
bytes of an undisturbed run. A sweep in which no call fails proves nothing and is wrong itself; `--defect` takes the
messages away that it guards, which it must find.

`faults.c` is compiled and preloaded into a process of its own, which imports everything once and forks for each run, so
that a run costs a fraction of a second. Its torch has one thread: a fork keeps only the thread that calls it.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

NUMBERS = (errno.EIO, errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EBUSY)
SOURCE = Path(__file__).with_name("faults.c")
SERVES = "QCONVERT_SWEEP"


def built(folder: Path) -> Path | None:
    """The library, compiled; None without a compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    library = folder / "faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-w", "-o", library, SOURCE, "-ldl"], check=True)
    return library


def sweep(every: int = 1, offset: int = 0, defect: bool = False) -> str | None:
    """What a process with the library preloaded finds, as text; AssertionError with it where something was wrong. None
    without a compiler."""
    with tempfile.TemporaryDirectory() as folder:
        library = built(Path(folder))
        if library is None:
            return None
        environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", SERVES: folder}
        arguments = [sys.executable, "-m", "tests.filesystem.sweep", "--every", str(every), "--offset", str(offset)]
        arguments += ["--defect"] if defect else []
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise AssertionError(f"{done.stdout}\n{done.stderr}")
        return done.stdout


@dataclass(frozen=True)
class Ended:
    """One run of the command line: its exit code and what it said."""

    code: int
    said: str


class Sweep:
    """The forked runs in one work folder; `place` is the folder in which calls are counted and the output appears."""

    def __init__(self, work: Path, defect: bool) -> None:
        from tests.tiny import write_tiny_checkpoint

        self.library = ctypes.CDLL(None)
        self.library.faults_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int]
        self.library.faults_names.restype = ctypes.c_char_p
        self.work, self.place, self.source = work, work / "place", work / "source"
        write_tiny_checkpoint(self.source)
        (self.source / "notes.md").write_text("read by no engine\n")
        self.untouched = contents(self.source)
        self.place.mkdir()
        self.refused, self.defect = 0, defect

    def run(self, k: int = 0, number: int = 0) -> Ended:
        """`quantize` in a child whose k-th call fails; 0: none does."""
        said = self.work / "said"
        child = os.fork()
        if child == 0:
            self._child(said, k, number)
        _, status = os.waitpid(child, 0)
        return Ended(os.waitstatus_to_exitcode(status), said.read_text())

    def _child(self, said: Path, k: int, number: int) -> None:
        from qconvert import pipeline
        from qconvert.cli import commands, main

        if self.defect:
            pipeline.refusal = commands.refusal = lambda error: None
        code = 99
        try:
            with said.open("w") as file:
                sys.stdout = sys.stderr = io.TextIOWrapper(file.buffer, write_through=True)
                arguments = ["quantize", str(self.source), str(self.place / "out"), "--workers", "1", "--device", "cpu"]
                self.library.faults_arm(str(self.place).encode(), k, number)
                try:
                    main([*arguments, "--max-shard-size", "300KB"])
                except SystemExit as end:
                    code = int(end.code or 0)
                except BaseException:
                    traceback.print_exc()
                self.library.faults_arm(b"", 0, 0)
        finally:
            os._exit(code)

    def calls(self) -> list[str]:
        """The calls of an undisturbed run, by kind; the output stays as what all others must end in."""
        names = self.work / "names"
        child = os.fork()
        if child == 0:
            from qconvert.quantization import quantize
            from qconvert.sizes import parse_bytes

            self.library.faults_arm(str(self.place).encode(), 0, 0)
            quantize(self.source, self.place / "out", max_shard_size=parse_bytes("300KB"))
            names.write_bytes(self.library.faults_names())
            os._exit(0)
        os.waitpid(child, 0)
        self.wanted = contents(self.place / "out")
        shutil.rmtree(self.place / "out")
        return names.read_text().split()

    def wrong(self, k: int, number: int) -> list[str]:
        """What is not as it has to be when call k fails with this number."""
        first = self.run(k, number)
        self.refused += first.code != 0
        found = []
        if first.code not in (0, 2):
            found.append(f"exit code {first.code}")
        if "Traceback" in first.said:
            found.append("a traceback")
        if first.code == 2 and not first.said.lstrip().startswith(("error: ", "warning: ")):
            found.append("no message")
        out = self.place / "out"
        if out.exists() and contents(out) != self.wanted:
            found.append("something else under the final name")
        if first.code == 0 and not out.exists():
            found.append("exit code 0 without an output")
        if first.code == 2 and not out.exists():
            again = self.run()
            if again.code != 0:
                found.append(f"the same command afterwards: exit code {again.code}: {again.said}")
            elif contents(out) != self.wanted:
                found.append("the same command afterwards: other bytes")
        if contents(self.source) != self.untouched:
            found.append("the source changed")
        for entry in self.place.iterdir():
            shutil.rmtree(entry)
        return [f"{what}\n{first.said}" for what in found]


def contents(folder: Path) -> dict[str, str]:
    """Hash of every file but the manifest, which holds times, and hidden leftovers."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "qconvert.json")
    shown = (path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts))
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in shown}


def main() -> int:
    """Sweep, print the counts, and say with the exit code whether all was right."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="of so many points one is tried")
    parser.add_argument("--offset", type=int, default=0, help="the first of them")
    parser.add_argument("--defect", action="store_true", help="put back the fault that this guards against")
    options = parser.parse_args()
    if SERVES not in os.environ:
        print(sweep(options.every, options.offset, options.defect) or "no compiler here: nothing was tried")
        return 0
    sweeper = Sweep(Path(os.environ[SERVES]), options.defect)
    calls = sweeper.calls()
    points = [(k, number) for k in range(1, len(calls) + 1) for number in NUMBERS]
    tried, bad = points[options.offset :: options.every], 0
    for k, number in tried:
        for what in sweeper.wrong(k, number):
            bad += 1
            print(f"call {k} ({calls[k - 1]}), {errno.errorcode[number]}: {what}")
    if not sweeper.refused:
        bad += 1
        print("no call was refused: the library stands between nothing")
    kinds = ", ".join(f"{count} {name}" for name, count in sorted(Counter(calls).items()))
    tally = f"{len(tried)} of {len(points)} points tried, {sweeper.refused} runs refused, {bad} wrong"
    print(f"{len(calls)} calls ({kinds}); {tally}")
    return min(bad, 1)


if __name__ == "__main__":
    sys.exit(main())

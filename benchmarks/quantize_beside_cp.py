"""`qconvert quantize` beside `cp` of the same source: wall time as a ratio within one run, and peak resident memory.

Makes a single-shard checkpoint with the 80B model's true shapes (`true_shapes.py`, about 4.5 GB), then alternates `cp
-r` + sync with `qconvert quantize` + sync, several rounds, and prints medians, the ratio and the largest peak RSS as
JSON. The page cache is warm for both. Peak RSS is the kernel's own figure for the finished child (`ru_maxrss`), not a
sample.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from true_shapes import write_true_shapes

# A child's ru_maxrss is never below the memory of the process that forked it, so a small one stands between.
MEASURE = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
os.sync()
print(time.perf_counter() - start, usage.ru_maxrss, os.waitstatus_to_exitcode(status))
"""


def run(command: list[str]) -> tuple[float, float]:
    """Wall seconds of a command (sync included) and its peak RSS in GB."""
    measured = subprocess.run(
        [sys.executable, "-S", "-c", MEASURE, *command], stdout=subprocess.PIPE, text=True, check=True
    )
    wall, kilobytes, code = measured.stdout.split()
    if int(code) != 0:
        raise SystemExit(f"failed: {' '.join(command)}")
    return float(wall), int(kilobytes) * 1024 / 1e9


def main() -> None:
    """Alternate the two jobs and print the figures."""
    parser = argparse.ArgumentParser(description="qconvert quantize beside cp")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args()
    work = Path(tempfile.mkdtemp(prefix="qconvert-bench-", dir=options.folder))
    try:
        source, target = work / "source", work / "target"
        size = write_true_shapes(source, options.layers)
        quantize = [sys.executable, "-m", "qconvert", "quantize", str(source), str(target)]
        quantize += ["--workers", str(options.workers)]
        copies: list[float] = []
        quantizes: list[tuple[float, float]] = []
        for _ in range(options.rounds):
            copies.append(run(["cp", "-r", str(source), str(target)])[0])
            shutil.rmtree(target)
            quantizes.append(run(quantize))
            shutil.rmtree(target)
        copy_s = statistics.median(copies)
        wall_s = statistics.median(wall for wall, _ in quantizes)
        figures = {
            "source_gb": round(size / 1e9, 3),
            "workers": options.workers,
            "cp_s": [round(value, 2) for value in copies],
            "quantize_s": [round(wall, 2) for wall, _ in quantizes],
            "ratio_to_cp": round(wall_s / copy_s, 3),
            "quantize_gb_per_s": round(size / 1e9 / wall_s, 3),
            "peak_rss_gb": round(max(rss for _, rss in quantizes), 3),
        }
        print(json.dumps(figures, indent=2))
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()

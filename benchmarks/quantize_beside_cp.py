"""`qconvert quantize` beside `cp` of the same source: wall time as a ratio within one run, CPU time, and peak memory.

    python benchmarks/quantize_beside_cp.py [--rounds 3] [-- OPTIONS] [-- OPTIONS]...

Makes a single-shard checkpoint with the 80B model's true shapes (`true_shapes.py`, about 4.5 GB). A round is `cp -r` +
sync, then for each group of options after a `--` one `qconvert quantize OPTIONS` + sync; without any, one with its
defaults. Prints medians, ratios and the largest peak RSS as JSON. A first round does not count: after it the page
cache is warm and loops are compiled. CPU seconds and peak RSS are the kernel's own figures for the finished child; on a
machine with other work they say more than wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GB = 1e9


@dataclass(frozen=True)
class Cost:
    """What one finished command took; `wall` includes the sync after it."""

    wall: float
    user: float
    system: float
    rss: float


def run(command: list[str]) -> Cost:
    """Run a command to its end, and wait until the disk has everything."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    os.sync()
    wall = time.perf_counter() - start
    if os.waitstatus_to_exitcode(status) != 0:
        raise SystemExit(f"failed: {' '.join(command)}")
    return Cost(wall, usage.ru_utime, usage.ru_stime, usage.ru_maxrss * 1024 / GB)


def summary(costs: list[Cost], size: int) -> dict[str, Any]:
    """All walls, and medians of the rest."""
    wall = statistics.median(cost.wall for cost in costs)
    return {
        "wall_s": [round(cost.wall, 2) for cost in costs],
        "user_s": round(statistics.median(cost.user for cost in costs), 2),
        "system_s": round(statistics.median(cost.system for cost in costs), 2),
        "gb_per_s": round(size / GB / wall, 3),
        "peak_rss_gb": round(max(cost.rss for cost in costs), 3),
    }


def make_source(folder: Path, layers: int = 1) -> int:
    """Write a checkpoint and return its size, in a process of its own: the kernel counts the memory of the process that
    starts a command as the command's."""
    maker = Path(__file__).resolve().with_name("true_shapes.py")
    subprocess.run([sys.executable, maker, folder, "--layers", str(layers)], check=True, stdout=sys.stderr)
    return (folder / "model.safetensors").stat().st_size


def groups(arguments: list[str]) -> tuple[list[str], list[list[str]]]:
    """Our own arguments, and those after each `--`."""
    parts: list[list[str]] = [[]]
    for argument in arguments:
        if argument == "--":
            parts.append([])
        else:
            parts[-1].append(argument)
    return parts[0], parts[1:] or [[]]


def main() -> None:
    """Alternate the jobs and print the figures."""
    own, configurations = groups(sys.argv[1:])
    parser = argparse.ArgumentParser(description="qconvert quantize beside cp", epilog="-- OPTIONS: of quantize")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    options = parser.parse_args(own)
    work = Path(tempfile.mkdtemp(prefix="qconvert-bench-", dir=options.folder))
    try:
        source, target = work / "source", work / "target"
        size = make_source(source, options.layers)
        convert = [sys.executable, "-m", "qconvert", "quantize", str(source), str(target)]
        convert += ["--workers", str(options.workers)]
        commands = {" ".join(["quantize", *extra]): convert + extra for extra in configurations}
        commands = {"cp": ["cp", "-r", str(source), str(target)], **commands}
        costs: dict[str, list[Cost]] = {name: [] for name in commands}
        for _ in range(1 + options.rounds):
            for name, command in commands.items():
                costs[name].append(run(command))
                shutil.rmtree(target)
        costs = {name: taken[1:] for name, taken in costs.items()}
        figures = {name: summary(taken, size) for name, taken in costs.items()}
        copying = statistics.median(cost.wall for cost in costs["cp"])
        for name, taken in costs.items():
            figures[name]["ratio_to_cp"] = round(statistics.median(cost.wall for cost in taken) / copying, 3)
        print(json.dumps({"source_gb": round(size / GB, 3), "workers": options.workers, **figures}, indent=2))
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()

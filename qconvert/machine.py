"""The machine a process runs on: how many cores it was really granted, and threads that do not fight over them.

    granted cores   the least of the cores of the affinity mask and every CPU quota of the process' control groups (a
                    container's --cpus, a job's slice), a quota of 1.5 cores rounded up to 2
    wait policy     OpenMP threads that wait for one another spin: for 300,000 turns by default in the OpenMP that torch
                    ships. Beside another busy process they then burn the time slice in which the thread they wait for
                    would have run. SPINS turns are enough to wait out the gaps between parallel regions on idle cores;
                    behind them a thread sleeps.

Both are environment variables that OpenMP reads when it is loaded, so `settle` has to run before torch is imported: the
command line and the tests call it first of all. Whatever the user has set stays. A program that uses the packages as a
library settles these things for itself.

Control groups version 2: `cpu.max` holds "quota period" in microseconds, or "max". Version 1: cpu.cfs_quota_us and
cpu.cfs_period_us. Every group up to the root limits those below it. Left out: shares and weights, which limit nothing
while a machine is idle.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path

CPUS = Path("/proc/cpuinfo")
GROUPS = Path("/proc/self/cgroup")
MOUNT = Path("/sys/fs/cgroup")
SPINS = 30_000
WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # any of them: the user has chosen
COUNTS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
BLOCKTIME = "1"  # milliseconds of spinning in LLVM's and Intel's OpenMP, which other builds of torch bring


def settle(environment: MutableMapping[str, str] = os.environ) -> None:
    """Set what OpenMP reads at load, as far as the user has not."""
    if not any(name in environment for name in WAITING):
        environment.update({"GOMP_SPINCOUNT": str(SPINS), "KMP_BLOCKTIME": BLOCKTIME})
    granted = granted_cores()
    if granted < affinity() and not any(name in environment for name in COUNTS):
        environment["OMP_NUM_THREADS"] = str(granted)  # torch respects affinity by itself, quotas not


def affinity() -> int:
    """Cores that the scheduler may put this process on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def granted_cores(groups: Path = GROUPS, mount: Path = MOUNT) -> int:
    """Cores that this process can keep busy, at least 1."""
    return max(1, min([affinity(), *(math.ceil(quota) for quota in quotas(groups, mount))]))


def processor() -> str:
    """The processor's name, for records."""
    try:
        lines = CPUS.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def quotas(groups: Path, mount: Path) -> Iterator[float]:
    """CPU quotas, in cores, of the process' groups and of all groups above them."""
    try:
        lines = groups.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError):
        return
    for line in lines:  # hierarchy:controllers:path, the controllers of version 2 being ""
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            yield from _found(mount, path, _version_2)
        elif "cpu" in controllers.split(","):
            for folder in (mount / controllers, mount / "cpu"):
                yield from _found(folder, path, _version_1)


def _found(root: Path, path: str, read: Callable[[Path], float | None]) -> Iterator[float]:
    """Quotas on the way from a group up to the root; in a container the root is the group itself, and `path` may name
    folders that are not seen from inside."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for length in range(len(parts), -1, -1):
        quota = read(root.joinpath(*parts[:length]))
        if quota is not None:
            yield quota


def _version_2(folder: Path) -> float | None:
    numbers = _numbers(folder / "cpu.max")
    return None if numbers is None or len(numbers) != 2 else _cores(*numbers)


def _version_1(folder: Path) -> float | None:
    quota, period = _numbers(folder / "cpu.cfs_quota_us"), _numbers(folder / "cpu.cfs_period_us")
    return None if not quota or not period else _cores(quota[0], period[0])


def _cores(quota: float, period: float) -> float | None:
    """None where there is no limit, which version 1 writes as -1."""
    return quota / period if quota > 0 and period > 0 else None


def _numbers(file: Path) -> list[float] | None:
    """The numbers in a file; None where it is missing or holds a word ("max")."""
    try:
        return [float(word) for word in file.read_text(encoding="ascii").split()]
    except (OSError, ValueError):
        return None

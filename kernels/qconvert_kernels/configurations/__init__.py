"""Which tiling a product runs with: `<kernel>.<device>.json`, or `<kernel>.default.json`.

    {"measured": "how and when, or null", "entries": [{"M": 16, "N": 2048, "K": 2048, "path": ..., <fields of Tiling>}]}

A file is looked for in the folder that QCONVERT_CONFIGURATIONS names, then beside this module; the tuner writes such
files (`qconvert bench kernels --tune`). An entry serves up to M tokens. The nearest weight shape is taken first (sum of
|log2| ratios of N and K), then the smallest M that suffices, else the largest. The routed experts have files and keys
of their own, `grouped.tilings`.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import fields
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from math import log2
from pathlib import Path
from typing import NamedTuple

from qconvert_kernels.tiling import Tiling, problems

FOLDER = "QCONVERT_CONFIGURATIONS"


class Entry(NamedTuple):
    """A tiling and the product it was chosen for."""

    m: int
    n: int
    k: int
    tiling: Tiling


@cache
def entries(kernel: str, device_name: str) -> tuple[Entry, ...]:
    """All entries for this device, or the default's; a file that asks for the impossible is an error."""
    file = find(kernel, device_name) or find(kernel, "default")
    if file is None:
        raise ValueError(f"there are no configurations for {kernel}")
    return parse(kernel, file.read_text(), str(file))


def find(kernel: str, device_name: str) -> Traversable | None:
    """The file for exactly this device, or None."""
    own, name = os.environ.get(FOLDER), file_name(kernel, device_name)
    folders: list[Traversable] = [files("qconvert_kernels.configurations")]
    if own:
        folders.insert(0, Path(own))
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def file_name(kernel: str, device_name: str) -> str:
    """Such as fp8_w8a8.NVIDIA_H200.json."""
    return f"{kernel}.{re.sub(r'[^A-Za-z0-9.-]+', '_', device_name)}.json"


def parse(kernel: str, text: str, where: str) -> tuple[Entry, ...]:
    """The entries of one file."""
    found = []
    for raw in json.loads(text)["entries"]:
        tiling = Tiling(**{field.name: raw[field.name] for field in fields(Tiling)})
        if wrong := problems(kernel, tiling):
            raise ValueError(f"{where}: {raw}: {'; '.join(wrong)}")
        found.append(Entry(raw["M"], raw["N"], raw["K"], tiling))
    return tuple(found)


def choose(kernel: str, device_name: str, m: int, n: int, k: int) -> Tiling:
    """The tiling for M tokens against a weight [N, K]."""
    return nearest(entries(kernel, device_name), m, n, k)


def nearest(every: tuple[Entry, ...], m: int, n: int, k: int) -> Tiling:
    """That of the entry which fits best."""
    least = min(_distance(entry, n, k) for entry in every)
    same = sorted((entry for entry in every if _distance(entry, n, k) == least), key=lambda entry: entry.m)
    return next((entry for entry in same if entry.m >= m), same[-1]).tiling


def _distance(entry: Entry, n: int, k: int) -> float:
    return abs(log2(entry.n / n)) + abs(log2(entry.k / k))

"""Which tiling a product runs with: `<kernel>.<device>.json` beside this file, or `<kernel>.default.json`.

    {"measured": "how and when, or null", "entries": [{"M": 16, "N": 2048, "K": 2048, "path": ..., <fields of Tiling>}]}

An entry serves up to M tokens. The nearest weight shape is taken first (sum of |log2| ratios of N and K), then the
smallest M that suffices, else the largest.
"""

from __future__ import annotations

import json
from dataclasses import fields
from functools import cache
from importlib.resources import files
from math import log2
from typing import NamedTuple

from qconvert_kernels.tiling import Tiling, problems


class Entry(NamedTuple):
    """A tiling and the product it was chosen for."""

    m: int
    n: int
    k: int
    tiling: Tiling


@cache
def entries(kernel: str, device_name: str) -> tuple[Entry, ...]:
    """All entries for this device, or the default's; a file that asks for the impossible is an error."""
    folder = files("qconvert_kernels.configurations")
    file = folder / f"{kernel}.{device_name.replace(' ', '_')}.json"
    if not file.is_file():
        file = folder / f"{kernel}.default.json"
    return parse(kernel, file.read_text(), str(file))


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

"""How the grouped products are cut into tiles, and what that needs of an H100 or H200.

A tile is so many rows of one expert. The defaults: with r rows an expert on average, 16 are taken up to r = 16 and 64
above. A weight that is read again for a second tile of its expert comes from the L2 cache, whereas rows that are
padding cost only time of the tensor core. They were chosen by arithmetic and by what the compiler makes of them
(registers, no spills, shared memory); not yet measured. A device may have a file of its own, found as those of the
dense products are (`configurations`):

    grouped_<kind>.<device>.json   {"measured": ..., "entries": [{"rows": 16, "tile": 16, "gate_up": [block_weights,
                                    warps, stages], "down": [...]}]}

An entry serves up to so many rows an expert, the largest any number.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, NamedTuple

from qconvert_kernels.configurations import find
from qconvert_kernels.tiling import BLOCK, SHARED_MEMORY_LIMIT, STEP_BYTES


class Product(NamedTuple):
    """Tiling of one kernel: rows of the weight a program takes (gate_up: of gate, and as many of up)."""

    block_weights: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class GroupedTiling:
    """Rows of a block, and the two products over such blocks."""

    tile: int
    gate_up: Product
    down: Product


# By rows per expert, rising; the last serves any number.
DEFAULTS: dict[str, tuple[tuple[float, GroupedTiling], ...]] = {
    "fp8_w8a8": (
        (16, GroupedTiling(16, Product(128, 4, 3), Product(128, 4, 4))),
        (float("inf"), GroupedTiling(64, Product(128, 8, 3), Product(128, 8, 4))),
    ),
    "fp8_w8a16": (
        (16, GroupedTiling(16, Product(64, 4, 4), Product(128, 4, 4))),
        (float("inf"), GroupedTiling(64, Product(128, 8, 3), Product(128, 8, 4))),
    ),
    "int4_w4a16": (
        (16, GroupedTiling(16, Product(64, 4, 4), Product(64, 4, 4))),
        (float("inf"), GroupedTiling(64, Product(128, 8, 3), Product(128, 8, 4))),
    ),
}


def choose(kind: str, device_name: str, pairs: int, experts: int) -> GroupedTiling:
    """The tiling for so many pairs over so many experts."""
    every = entries(kind, device_name)
    rows = rows_of(pairs, experts)
    return next((tiling for most, tiling in every if rows <= most), every[-1][1])


def rows_of(pairs: int, experts: int) -> float:
    """Rows an expert has on average, if all have some that can."""
    return pairs / max(1, min(pairs, experts))


@cache
def entries(kind: str, device_name: str) -> tuple[tuple[float, GroupedTiling], ...]:
    """By rows, rising; a file that asks for the impossible is an error."""
    file = find(f"grouped_{kind}", device_name)
    if file is None:
        return DEFAULTS[kind]
    found = []
    for raw in json.loads(file.read_text())["entries"]:
        tiling = GroupedTiling(raw["tile"], Product(*raw["gate_up"]), Product(*raw["down"]))
        if wrong := problems(kind, tiling):
            raise ValueError(f"{file}: {raw}: {'; '.join(wrong)}")
        found.append((float(raw["rows"]), tiling))
    return tuple(sorted(found, key=lambda entry: entry[0]))


def as_entry(rows: float, tiling: GroupedTiling) -> dict[str, Any]:
    """An entry of a file."""
    return {"rows": rows, **asdict(tiling), "gate_up": list(tiling.gate_up), "down": list(tiling.down)}


def problems(kind: str, tiling: GroupedTiling) -> list[str]:
    """Why this tiling cannot run; empty if it can."""
    if kind not in STEP_BYTES:
        return [f"unknown kind {kind!r}; known: {', '.join(STEP_BYTES)}"]
    found = []
    if tiling.tile not in (16, 32, 64, 128):
        found.append(f"tile {tiling.tile}: 16, 32, 64 or 128")
    for name, product in (("gate_up", tiling.gate_up), ("down", tiling.down)):
        needed = (BLOCK,) if (kind, name) == ("fp8_w8a8", "gate_up") else (64, BLOCK)
        if product.block_weights not in needed:
            found.append(f"{name}: block_weights {product.block_weights}, expected {' or '.join(map(str, needed))}")
        if product.num_warps not in (4, 8) or product.num_stages < 1:
            found.append(f"{name}: 4 or 8 warps and a stage at least")
        if (size := shared_memory(kind, name, tiling)) > SHARED_MEMORY_LIMIT:
            found.append(f"{name}: {size} bytes of shared memory, {SHARED_MEMORY_LIMIT} are there")
    return found


def shared_memory(kind: str, name: str, tiling: GroupedTiling) -> int:
    """Bytes of shared memory, from above: the stages of the pipeline, and the results on their way out."""
    weight, token = STEP_BYTES[kind]
    product: Product = getattr(tiling, name)
    rows = product.block_weights * (2 if name == "gate_up" else 1)
    return product.num_stages * (rows * weight + tiling.tile * token) + product.block_weights * tiling.tile * 4 + 1024

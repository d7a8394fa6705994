"""Recorded pairs: figures of comparisons that the default budget has been held against, shipped in recorded/*.json.

`qconvert report RESULTS --record FILE` writes one from a judged record. Put into this folder it is part of the package:
once a pair of LARGE parameters is there, reports stop calling the default budget provisional.

File format: {model, parameters, layers, experts, experts_chosen, tokens, documents, longest_sequence, created,
qconvert, budget, verdict, lanes: {name: {scheme, status, smallest_margin, measurements}}} with measurements as
{"name (slice)": [value, low, high]}; `budget` is the digest of the bounds that judged. Left out: paths, file hashes and
everything by token, which results.json has; a record is to be read by people.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.resources import files
from typing import Any

from qconvert.errors import UserError
from qconvert_evals.results import LaneIdentity, Results
from qconvert_reports.verdict_view import thinnest

LARGE = 10_000_000_000
FOLDER = "recorded"


def record_of(results: Results) -> dict[str, Any]:
    """What of a judged comparison goes on record."""
    model = results.figures.get("model")
    if results.verdict is None or not model:
        raise UserError(
            "these results cannot go on record",
            expected="a verdict, and the size of the model among the figures",
            found="no verdict" if results.verdict is None else "results of an older qconvert, without the model's size",
            fix="compare again with this version",
        )
    base = next((one for one in results.lanes if one.role == "base"), None)
    tool = results.tool
    return {
        "model": _name(base),
        **{key: model.get(key) for key in ("parameters", "layers", "experts", "experts_chosen")},
        **{key: tool.get(key) for key in ("tokens", "documents", "longest_sequence")},
        "created": results.created,
        "qconvert": tool.get("version"),
        "budget": (results.figures.get("budget") or {}).get("digest"),
        "verdict": results.verdict.status,
        "lanes": {one.name: _lane(results, one) for one in results.lanes if one.role == "candidate"},
    }


def _name(base: LaneIdentity | None) -> str:
    """The hub's name where there is one, else the folder's own; never a path of somebody's machine."""
    if base is None:
        return ""
    return base.revision or base.path.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1]


def _lane(results: Results, lane: LaneIdentity) -> dict[str, Any]:
    assert results.verdict is not None
    rows = [row for row in results.verdict.rows if row.lane == lane.name]
    worst = thinnest(rows)
    return {
        "scheme": lane.recipe.get("scheme", ""),
        "status": next((one for one in ("fail", "inconclusive") if one in {row.status for row in rows}), "pass"),
        "smallest_margin": None if worst is None else worst.margin,
        "measurements": {
            f"{row.measurement} ({row.slice})": [row.value, *row.ci] for row in rows if row.value is not None
        },
    }


def record_text(results: Results) -> str:
    """The file."""
    return json.dumps(record_of(results), indent=1, ensure_ascii=False) + "\n"


@lru_cache(maxsize=1)
def recorded_pairs() -> tuple[dict[str, Any], ...]:
    """All shipped records."""
    folder = files("qconvert_reports").joinpath(FOLDER)
    if not folder.is_dir():
        return ()
    paths = sorted((one for one in folder.iterdir() if one.name.endswith(".json")), key=lambda one: one.name)
    return tuple(json.loads(path.read_text(encoding="utf-8")) for path in paths)

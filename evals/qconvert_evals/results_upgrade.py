"""Older results.json files brought up to date, one version at a time, on the plain JSON before any class reads it.

    1 -> 2   verdict rows gain `decided`, `n` and `needed_n`; the status "improved" appears
    2 -> 3   measurements gain `exact`, lanes `noise_lane`, verdict rows `margin`

A step adds what its version added and says where it cannot know: it never invents a number. What a step needs to change
in meaning it changes here, so that everything behind `Results.load` knows the current version alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Raw = dict[str, Any]


def _from_1(raw: Raw) -> Raw:
    verdict = raw.get("verdict")
    if verdict is None:
        return raw
    added = {"decided": "not recorded by this version of the file", "n": None, "needed_n": None}
    return {**raw, "verdict": {**verdict, "rows": [{**row, **added} for row in verdict["rows"]]}}


# What every version counted in full; the interval's width cannot say so.
_COUNTED = ("weights.", "model.", "logits.nonfinite_tokens", "latency.cache_bytes", "latency.weight_bytes")
_NOISE_LANE = "bf16-noise"  # the only one that there was


def _from_2(raw: Raw) -> Raw:
    names = {lane["name"] for lane in raw["lanes"]}
    noise = _NOISE_LANE if _NOISE_LANE in names else None
    lanes = [{**lane, "noise_lane": noise if lane["role"] == "candidate" else None} for lane in raw["lanes"]]
    rows = [{**row, "exact": row["name"].startswith(_COUNTED)} for row in raw["measurements"]]
    verdict = raw.get("verdict")
    if verdict is not None:
        verdict = {**verdict, "rows": [{**row, "margin": None} for row in verdict["rows"]]}
    return {**raw, "lanes": lanes, "measurements": rows, "verdict": verdict}


STEPS: dict[int, Callable[[Raw], Raw]] = {1: _from_1, 2: _from_2}


def upgraded(raw: Raw, version: int) -> Raw:
    """The same record in `version`, which is not older than its own."""
    while raw["schema_version"] < version:
        number = raw["schema_version"]
        raw = {**STEPS[number](raw), "schema_version": number + 1}
    return raw

"""Older results.json files brought up to date, one version at a time, on the plain JSON before any class reads it.

    1 -> 2   verdict rows gain `decided`, `n` and `needed_n`; the status "improved" appears

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


STEPS: dict[int, Callable[[Raw], Raw]] = {1: _from_1}


def upgraded(raw: Raw, version: int) -> Raw:
    """The same record in `version`, which is not older than its own."""
    while raw["schema_version"] < version:
        number = raw["schema_version"]
        raw = {**STEPS[number](raw), "schema_version": number + 1}
    return raw

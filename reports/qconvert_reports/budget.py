"""Budgets: how much drift is allowed, as rows of a TOML file.

File format:

    version = 1
    name = "what this budget is for"

    [fp8]                               # any number of sections, any names
    lanes = ["fp8*"]                    # globs on lane names; the section applies where a lane's name matches ...
    schemes = ["fp8-*"]                 # ... or its recipe's scheme does
    [[fp8.rows]]
    measurement = "logits.kl_mean"      # a glob
    slice = "domain=*"                  # a glob for each key; the keys themselves must be the same ("all" by default)
    max = 0.02                          # exactly one bound, see `rules`
    unit = "nats"                       # optional; "%" and "pp" are hundredths of a fraction; must fit the measurement
    min_n = 1000                        # optional; with fewer samples the row is inconclusive
    only_if_base_has = true             # optional; the row does not apply where BF16 itself has no such measurement
    why = "where the bound comes from"  # required: a bound without a reason is a guess

Anything else in the file is refused, because a misspelt bound would gate nothing. Left out: arithmetic between
measurements of a lane; what deserves a bound deserves a measurement of its own, with its own interval.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Any

from qconvert.errors import UserError
from qconvert_evals.results import LaneIdentity
from qconvert_reports.rules import BOUNDS, OVERLAP, UNITS, WITHIN, Rule

BUDGET_VERSION = 1
DEFAULT = "budgets/default.toml"  # in the package
_ROW_KEYS = {"measurement", "slice", "unit", "min_n", "only_if_base_has", "why", *BOUNDS}
_SECTION_KEYS = {"lanes", "schemes", "rows"}


@dataclass(frozen=True)
class Section:
    """The rows for one kind of lane."""

    name: str
    lanes: tuple[str, ...]
    schemes: tuple[str, ...]
    rules: tuple[Rule, ...]

    def applies_to(self, lane: LaneIdentity) -> bool:
        """By the lane's name, or by what its recipe says it is."""
        scheme = str(lane.recipe.get("scheme", ""))
        by_name = any(fnmatchcase(lane.name, glob) for glob in self.lanes)
        return by_name or any(fnmatchcase(scheme, glob) for glob in self.schemes)


@dataclass(frozen=True)
class Budget:
    """All sections of one file."""

    name: str
    source: str
    sections: tuple[Section, ...]

    def rules_for(self, lane: LaneIdentity) -> list[Rule]:
        """Rows that bind this lane, in file order."""
        return [rule for section in self.sections if section.applies_to(lane) for rule in section.rules]

    @property
    def digest(self) -> str:
        """Of all bounds; the reasons may be worded anew without another one."""
        bounds = [
            (one.name, one.lanes, one.schemes, [{**asdict(rule), "why": ""} for rule in one.rules])
            for one in self.sections
        ]
        return hashlib.sha256(json.dumps(bounds, sort_keys=True).encode()).hexdigest()[:16]


def default_budget() -> Budget:
    """The budget that ships with the package."""
    resource = files("qconvert_reports").joinpath(DEFAULT)
    return parse_budget(resource.read_text(encoding="utf-8"), DEFAULT)


def load_budget(path: str | Path | None) -> Budget:
    """A user's file, or the default budget for None."""
    if path is None:
        return default_budget()
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError("cannot read the budget", where=str(path), found=str(error)) from error
    return parse_budget(text, str(path))


def parse_budget(text: str, where: str) -> Budget:
    """Budget from TOML text; every mistake in it is a UserError that names the row."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError("the budget is not valid TOML", where=where, found=str(error)) from error
    version = raw.pop("version", None)
    if version != BUDGET_VERSION:
        raise UserError(
            "unknown budget version", where=where, expected=f"version = {BUDGET_VERSION}", found=repr(version)
        )
    name = str(raw.pop("name", where))
    sections = tuple(_section(key, table, where) for key, table in raw.items())
    if not sections:
        raise UserError(
            "the budget has no section, so it would gate nothing", where=where, fix="add [fp8] and [[fp8.rows]]"
        )
    return Budget(name, where, sections)


def _section(name: str, table: Any, where: str) -> Section:
    place = f"{where}, [{name}]"
    if not isinstance(table, dict):
        raise UserError("unknown key in the budget", where=where, expected="version, name or a [section]", found=name)
    _known(table, _SECTION_KEYS, place)
    lanes, schemes = (_globs(table, key, place) for key in ("lanes", "schemes"))
    rows = table.get("rows")
    if not lanes + schemes or not isinstance(rows, list) or not rows:
        raise UserError(
            "this section would gate nothing", where=place, expected="lanes or schemes, and at least one [[rows]]"
        )
    rules = tuple(_rule(name, row, f"{place}, row {number}") for number, row in enumerate(rows, 1))
    names = [rule.name for rule in rules]
    twice = next((one for one in names if names.count(one) > 1), None)
    if twice is not None:
        raise UserError("two rows bind the same thing", where=place, found=twice, fix="keep one of them")
    return Section(name, lanes, schemes, rules)


def _rule(section: str, row: Any, place: str) -> Rule:
    _known(row, _ROW_KEYS, place)
    for key in ("measurement", "why"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise UserError(f"a budget row needs `{key}`", where=place, found=repr(row.get(key)))
    bounds = [key for key in BOUNDS if key in row]
    if len(bounds) != 1:
        raise UserError(
            "a budget row needs exactly one bound", where=place, expected=", ".join(BOUNDS), found=str(bounds)
        )
    unit = row.get("unit")
    if unit is not None and unit not in UNITS:
        raise UserError("unknown unit in the budget", where=place, expected=", ".join(UNITS), found=repr(unit))
    side, against = BOUNDS[bounds[0]]
    if (side == WITHIN or against == OVERLAP) and _number(row[bounds[0]], bounds[0], place) < 0:
        raise UserError(
            "nothing lies within a negative distance, and noise has no sign",
            where=place,
            found=f"{bounds[0]} = {row[bounds[0]]}",
        )
    return Rule(
        section=section,
        measurement=row["measurement"],
        slice=_typed(row, "slice", str, "all", place),
        bound=bounds[0],
        limit=_number(row[bounds[0]], bounds[0], place),
        why=" ".join(row["why"].split()),
        unit=unit,
        min_n=_typed(row, "min_n", int, 0, place),
        only_if_base_has=_typed(row, "only_if_base_has", bool, False, place),
    )


def _known(table: Any, known: set[str], place: str) -> None:
    unknown = sorted(set(table) - known) if isinstance(table, dict) else [repr(table)]
    if unknown:
        raise UserError(
            "unknown key in the budget", where=place, expected=", ".join(sorted(known)), found=", ".join(unknown)
        )


def _globs(table: dict[str, Any], key: str, place: str) -> tuple[str, ...]:
    globs = table.get(key, [])
    if not isinstance(globs, list) or not all(isinstance(one, str) for one in globs):
        raise UserError(f"`{key}` must be a list of globs", where=place, found=repr(globs))
    return tuple(globs)


def _number(value: Any, key: str, place: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"`{key}` must be a finite number", where=place, found=repr(value))
    return float(value)


def _typed(row: dict[str, Any], key: str, kind: type, default: Any, place: str) -> Any:
    value = row.get(key, default)
    if type(value) is not kind:
        raise UserError(f"`{key}` must be of type {kind.__name__}", where=place, found=repr(value))
    return value

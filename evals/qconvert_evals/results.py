"""results.json: the versioned record of one comparison, written by the lanes' runner and read by the reports.

File format: one JSON object whose keys are the fields of `Results` in the order of the class, and whose records carry
every field of their class in its order; floats are finite or null. `schema_version` grows whenever a field is added,
renamed or changes its meaning, so a reader never guesses: it brings older versions up to date step by step
(`results_upgrade`), refuses a version newer than its own, and a record with other fields. Each version is frozen as a
JSON Schema, `schemas/results.v<version>.json`, for readers in other languages.

A measurement that could not be made has `value: null` and an entry in `missing` that says why. It is never left out
and never zero, because a gate that reads nothing would pass.

No torch in here: reports and CI tools read results on machines that hold no model. Judging is not done here either;
the verdict's dataclasses are here only because the verdict is stored with the numbers that it judged.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from qconvert.errors import UserError
from qconvert_evals.results_upgrade import upgraded

if TYPE_CHECKING:
    import pandas

SCHEMA_VERSION = 3

BASE_LANE = "bf16"
NOISE_SUFFIX = "-noise"
NOISE_LANE = BASE_LANE + NOISE_SUFFIX


def is_noise(lane: str) -> bool:
    """Whether a lane is another's noise lane; no candidate may be called like one."""
    return lane.endswith(NOISE_SUFFIX)


def reference_of(lane: str) -> str:
    """The lane that a lane is measured against: a noise lane against the one it is named after, others against BF16."""
    return lane.removesuffix(NOISE_SUFFIX) if is_noise(lane) else BASE_LANE


@dataclass(frozen=True)
class Measurement:
    """One number: what (`name`), whose (`lane`), over what (`slice`), with its 95% interval where one is known.

    `n` counts the units averaged over (tokens, drafts, tensors). `noise_floor` is the value that the lane's noise lane
    (`LaneIdentity.noise_lane`: the same weights in another order of accumulation) has for the same name and slice.
    `exact` says that the number was counted in full and has no sampling error; an interval without width does not say
    so, since two documents can agree by chance.
    """

    name: str
    lane: str
    slice: str
    value: float | None
    unit: str
    n: int
    ci_low: float | None = None
    ci_high: float | None = None
    noise_floor: float | None = None
    exact: bool = False

    def __post_init__(self) -> None:
        for label in ("value", "ci_low", "ci_high", "noise_floor"):
            number = getattr(self, label)
            if number is not None and not math.isfinite(number):
                raise ValueError(f"{self.name} of {self.lane} ({self.slice}): {label} is {number}; None says missing")


@dataclass(frozen=True)
class Missing:
    """A measurement that should be there and is not, and why."""

    name: str
    lane: str
    slice: str
    why: str


@dataclass(frozen=True)
class LaneIdentity:
    """What exactly was measured: enough to tell whether two results speak about the same bytes. `noise_lane` names the
    lane whose numbers are this lane's noise floors."""

    name: str
    role: str  # "base", "noise" or "candidate"
    path: str
    revision: str | None
    files: dict[str, str]  # file name -> sha256
    recipe: dict[str, Any]
    numerics: dict[str, Any]
    versions: dict[str, str]
    noise_lane: str | None = None


@dataclass(frozen=True)
class VerdictRow:
    """One rule applied to one measurement; `decided` says in words what led to the status, `needed_n` about how many
    samples would have decided where none did. `margin` is the distance from the interval's nearer end to the bound in
    half-widths of the interval, positive within the bound; None where the number is exact or was not judged."""

    status: str  # "pass", "improved", "fail", "inconclusive" or "not applicable"
    rule: str
    lane: str
    measurement: str
    slice: str
    value: float | None
    ci: tuple[float | None, float | None]
    bound: str
    reason: str
    decided: str = ""
    n: int | None = None
    needed_n: int | None = None
    margin: float | None = None


@dataclass(frozen=True)
class Verdict:
    """The judgement over all rules; the worst row decides."""

    status: str
    rows: list[VerdictRow]


@dataclass
class Results:
    """Everything that one comparison found."""

    schema_version: int = SCHEMA_VERSION
    created: str = ""  # ISO 8601, UTC
    tool: dict[str, Any] = field(default_factory=dict)  # name, version and the settings of the run
    lanes: list[LaneIdentity] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    verdict: Verdict | None = None
    figures: dict[str, Any] = field(default_factory=dict)  # plain data behind plots and tables

    def find(self, name: str, lane: str, slice: str = "all") -> Measurement | None:
        """The measurement of that name, or None where there is none."""
        for row in self.measurements:
            if (row.name, row.lane, row.slice) == (name, lane, slice):
                return row
        return None

    def to_frame(self, of: str = "measurements", *, slices: bool = False) -> pandas.DataFrame:
        """The measurements as a pandas frame, one row each; or the "missing", the "verdict"'s rows, the "lanes".

        `slices` adds a column of text for each condition that a slice names (`frames` says which columns there are):

        >>> rows = [Measurement("router.kl", "fp8", f"layer={n},feed=local", 0.1 * n, "nats", 4096) for n in (1, 2)]
        >>> frame = Results(measurements=rows).to_frame(slices=True)
        >>> frame[["lane", "layer", "value"]].to_dict("records")
        [{'lane': 'fp8', 'layer': '1', 'value': 0.1}, {'lane': 'fp8', 'layer': '2', 'value': 0.2}]
        """
        from qconvert_evals.frames import frame

        return frame(self, of, slices)

    def to_json(self) -> str:
        """Text of results.json; raises ValueError where a figure holds NaN or Infinity, which JSON cannot say."""
        return json.dumps(asdict(self), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "results.json") -> Results:
        """Inverse of `to_json`."""
        try:
            raw = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError("this is not a results file", where=where, expected="JSON", found=str(error)) from error
        _check_version(raw, where)
        raw = _up_to_date(raw, where)
        verdict = raw.get("verdict")
        _same_fields(cls, raw, where)
        return cls(
            schema_version=raw["schema_version"],
            created=raw["created"],
            tool=raw["tool"],
            lanes=[_record(LaneIdentity, row, where) for row in raw["lanes"]],
            measurements=[_record(Measurement, row, where) for row in raw["measurements"]],
            missing=[_record(Missing, row, where) for row in raw["missing"]],
            verdict=None if verdict is None else _verdict(verdict, where),
            figures=raw["figures"],
        )

    def save(self, path: str | Path) -> None:
        """Write results.json."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Results:
        """Read results.json."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError("cannot read the results file", where=str(path), found=str(error)) from error
        return cls.from_json(text, where=str(path))


def _check_version(raw: Any, where: str) -> None:
    """Refuse what is no results file and what a newer qconvert wrote."""
    version = raw.get("schema_version") if isinstance(raw, dict) else None
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise UserError(
            "this is not a results file", where=where, expected="a JSON object with schema_version", found=repr(version)
        )
    if version > SCHEMA_VERSION:
        raise UserError(
            "a newer qconvert wrote this results file",
            where=where,
            expected=f"schema_version {SCHEMA_VERSION} or older",
            found=f"schema_version {version}",
            fix="upgrade qconvert, or write the results again with this version",
        )


def _up_to_date(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """The record as the current version writes it; a file that its own version would not hold is the user's."""
    try:
        return upgraded(raw, SCHEMA_VERSION)
    except (TypeError, KeyError) as error:
        expected, found = f"a record of schema_version {raw['schema_version']}", f"{type(error).__name__}: {error}"
        raise UserError("malformed results", where=where, expected=expected, found=found) from error


def _same_fields(kind: type[Any], raw: Any, where: str) -> None:
    """Refuse a record whose fields are not exactly those of its class."""
    names = [one.name for one in fields(kind)]
    if not isinstance(raw, dict) or sorted(raw) != sorted(names):
        found = ", ".join(sorted(raw)) if isinstance(raw, dict) else type(raw).__name__
        what = f"malformed {kind.__name__} in the results"
        raise UserError(what, where=where, expected=", ".join(names), found=found)


Record = TypeVar("Record", LaneIdentity, Measurement, Missing)


def _record(kind: type[Record], raw: Any, where: str) -> Record:
    _same_fields(kind, raw, where)
    try:
        return kind(**raw)
    except (TypeError, ValueError) as error:
        raise UserError(f"malformed {kind.__name__} in the results", where=where, found=str(error)) from error


def _verdict(raw: Any, where: str) -> Verdict:
    _same_fields(Verdict, raw, where)
    rows = []
    for row in raw["rows"]:
        _same_fields(VerdictRow, row, where)
        rows.append(VerdictRow(**{**row, "ci": (row["ci"][0], row["ci"][1])}))
    return Verdict(status=raw["status"], rows=rows)

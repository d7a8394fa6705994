"""All results.json below a folder, in the order they were made: what each measurement did from run to run.

    DIR/**/results.json, DIR/**/*.results.json     read, ordered by `created`, the same record kept once

Runs are joined by a line where they speak about the same thing (`likeness.key`: same BF16 files, same tokens, same
settings). A run of something else stands in the history, marked and unjoined: its numbers moved for reasons that no
conversion made. Left out: judgement. A history shows; the budget and a baseline decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from qconvert.errors import UserError
from qconvert_evals.results import Measurement, Results
from qconvert_reports.labels import conditions, show_value
from qconvert_reports.likeness import key, unlike

SLICES = ({"all"}, {"position"}, {"feed"}, {"filter"})  # keys of the slices that are followed; not layers or domains
FIRST = (  # what stands at the top and in the Markdown table's head rows
    ("logits.kl_mean", "all"),
    ("logits.top1_agreement", "all"),
    ("logits.ppl_ratio", "all"),
    ("router.set_match", "feed=local"),
    ("mtp.acceptance_greedy", "position=1"),
    ("mtp.accept_length", "all"),
    ("weights.relative_error", "all"),
)
SHOWN_WHY = 2  # differences named for a run that is not comparable


@dataclass(frozen=True)
class Run:
    """One record; runs of one `group` may be joined; `why` says what is unlike the newest run, "" where nothing is."""

    path: str
    created: str
    results: Results
    group: int
    why: str

    @property
    def status(self) -> str:
        """The verdict's, "not judged" without one."""
        return self.results.verdict.status if self.results.verdict is not None else "not judged"

    @property
    def day(self) -> str:
        """Date and time to the minute."""
        return self.created[:16].replace("T", " ")


@dataclass(frozen=True)
class Line:
    """One measurement over all runs, by lane; None where a run does not have it."""

    name: str
    slice: str
    unit: str
    lanes: dict[str, list[Measurement | None]]


@dataclass(frozen=True)
class History:
    """The runs, oldest first, and every measurement over them, what is read first in front."""

    folder: str
    runs: list[Run]
    lines: list[Line]


def read_history(folder: Path) -> History:
    """UserError where there is no record, or one that cannot be read."""
    if not folder.is_dir():
        raise UserError("no such folder", where=str(folder))
    paths = sorted({*folder.rglob("results.json"), *folder.rglob("*.results.json")})
    records: dict[str, tuple[Path, Results]] = {}
    for path in paths:
        results = Results.load(path)
        records.setdefault(results.to_json(), (path, results))
    if not records:
        raise UserError("no results.json below this folder", where=str(folder), fix="name a folder that holds reports")
    ordered = sorted(records.values(), key=lambda one: (one[1].created, str(one[0])))
    return History(str(folder), _runs(ordered, folder), _lines([results for _, results in ordered]))


def _runs(records: list[tuple[Path, Results]], folder: Path) -> list[Run]:
    groups: dict[str, int] = {}
    newest = records[-1][1]
    runs = []
    for path, results in records:
        group = groups.setdefault(key(results), len(groups))
        told = [f"{one.kind} ({one.what})" for one in unlike(newest, results)]
        more = f" and {len(told) - SHOWN_WHY} more" if len(told) > SHOWN_WHY else ""
        why = f"other {', other '.join(told[:SHOWN_WHY])}{more}" if told else ""
        runs.append(Run(str(path.relative_to(folder)), results.created, results, group, why))
    return runs


def _lines(records: list[Results]) -> list[Line]:
    tables = [{(m.name, m.slice, m.lane): m for m in one.measurements} for one in records]
    units: dict[tuple[str, str], str] = {}
    lanes: dict[tuple[str, str], dict[str, None]] = {}
    for results in records:
        candidates = {one.name for one in results.lanes if one.role == "candidate"}
        for m in results.measurements:
            if m.lane in candidates and m.value is not None and conditions(m.slice).keys() in SLICES:
                units.setdefault((m.name, m.slice), m.unit)
                lanes.setdefault((m.name, m.slice), {})[m.lane] = None
    order = {one: number for number, one in enumerate(FIRST)}
    found = sorted(lanes, key=lambda one: order.get(one, len(order)))
    return [
        Line(
            name, at, units[name, at], {lane: [_get(one, name, at, lane) for one in tables] for lane in lanes[name, at]}
        )
        for name, at in found
    ]


def _get(table: dict[tuple[str, str, str], Measurement], name: str, at: str, lane: str) -> Measurement | None:
    one = table.get((name, at, lane))
    return one if one is not None and one.value is not None else None


def text_lines(history: History) -> Iterator[str]:
    """For the terminal: the runs, then the first measurements over the comparable ones."""
    for number, run in enumerate(history.runs, 1):
        mark = f"   not comparable with the newest: {run.why}" if run.why else ""
        yield f"{number:3}  {run.day}  {run.status:14}{run.path}{mark}"
    yield ""
    for line in history.lines:
        if (line.name, line.slice) in FIRST:
            for lane, points in line.lanes.items():
                pairs = zip(points, history.runs, strict=True)
                shown = [show_value(m.value if m else None, line.unit) + "*" * bool(run.why) for m, run in pairs]
                yield f"{lane:12}{line.name} ({line.slice}): {' '.join(shown[-12:])}"
    if any(run.why for run in history.runs):
        yield "* not comparable with the newest run"

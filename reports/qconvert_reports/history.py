"""All results.json below a folder, in the order they were made: what each measurement did from run to run.

    DIR/**/results.json, DIR/**/*.results.json     read, ordered by `created`, the same record kept once

Runs are joined by a line where they speak about the same thing (`likeness.key`: same BF16 files, same tokens, same
settings). A run of something else stands in the history, marked and unjoined: its numbers moved for reasons that no
conversion made. Measurements are joined by name, slice, unit and lane (pandas), so one that came to be counted in
another unit is another line, and a record that holds one twice is refused. Left out: judgement. A history shows; the
budget and a baseline decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas

from qconvert.errors import UserError
from qconvert_evals.results import Measurement, Results
from qconvert_reports.labels import conditions, show_value
from qconvert_reports.likeness import key, unlike

PLACE = ["name", "slice", "unit", "lane"]
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
    return History(str(folder), _runs(ordered, folder), _lines(ordered))


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


def _lines(records: list[tuple[Path, Results]]) -> list[Line]:
    """A row a measurement and lane in the order in which they came up, a column a run."""
    tables = [_followed(results) for _, results in records]
    joined = pandas.concat(tables)[PLACE].drop_duplicates()
    for run, table in enumerate(tables):
        try:
            joined = joined.merge(table.rename(columns={"point": run}), "left", PLACE, validate="one_to_one")
        except pandas.errors.MergeError as error:
            twice = " ".join(table.loc[table.duplicated(PLACE), PLACE].iloc[0])
            what, path = "a record holds a measurement twice", str(records[run][0])
            raise UserError(what, where=path, found=twice, fix="make it again, or take it out of the folder") from error
    found = []
    for (name, at, unit), rows in joined.groupby(PLACE[:3], sort=False):
        points = rows.set_index("lane")[list(range(len(tables)))].astype(object)
        lanes = {
            lane: [one if isinstance(one, Measurement) else None for one in row] for lane, *row in points.itertuples()
        }
        found.append(Line(name, at, unit, lanes))
    order = {one: number for number, one in enumerate(FIRST)}
    return sorted(found, key=lambda line: order.get((line.name, line.slice), len(order)))


def _followed(results: Results) -> pandas.DataFrame:
    """PLACE and the measurement itself, of the candidates' measurements that a history follows."""
    frame = results.to_frame()
    frame["point"] = pandas.Series(results.measurements, dtype=object)
    candidates = [one.name for one in results.lanes if one.role == "candidate"]
    slices = [one for one in frame["slice"].unique() if conditions(one).keys() in SLICES]
    kept = frame["lane"].isin(candidates) & frame["slice"].isin(slices) & frame["value"].notna()
    return frame.loc[kept, [*PLACE, "point"]]


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

"""What changed between two records of the same comparison: this run against a blessed one.

A change counts as one where the two 95% intervals do not overlap (stricter than a test at 5%, so of many rows few stand
out by chance). A number marked as exact (a weight's error) counts where it differs at all: it is the same bits on every
machine. A sampled number whose spread is unknown, with no interval or one without width, is "open" where it differs:
two documents that agree by chance are no proof. Informative by itself, the budget decides; with `--gate-baseline` every
change for the worse becomes a failing row of the verdict.

Unlike things are refused (`likeness`) unless the reader asks for them, and then the report says what was unlike. With
every failure stands the shell command that accepts the new figures as the baseline.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from qconvert_evals.results import Measurement, Results, Verdict, VerdictRow
from qconvert_reports.judged import known_interval
from qconvert_reports.labels import LABELS, show_value
from qconvert_reports.likeness import Unlike, refuse_unlike

WORSE = ("gone", "worse")
RULE = "baseline"
OPEN, SAME = "open", "same"


@dataclass(frozen=True)
class Change:
    """One measurement in both records; `kind` is "better", "worse", "moved", "open", "same", "new" or
    "gone"."""

    kind: str
    name: str
    lane: str
    slice: str
    unit: str
    before: Measurement | None
    after: Measurement | None


@dataclass(frozen=True)
class Against:
    """A record held against its baseline; `accept` is the command that makes the new figures the baseline."""

    path: str
    changes: list[Change]
    unlike: list[Unlike]
    accept: str

    @property
    def moved(self) -> list[Change]:
        """What changed, worst first."""
        return [one for one in self.changes if one.kind not in (OPEN, SAME)]

    @property
    def worse(self) -> list[Change]:
        """What changed for the worse, or is there no more."""
        return [one for one in self.changes if one.kind in WORSE]

    @property
    def counted(self) -> str:
        """`3 of 812 numbers changed`, and how many could not be decided."""
        differing = sum(one.kind == OPEN for one in self.changes)
        more = f"; {differing} more differ by nobody knows how much of chance" if differing else ""
        return f"{len(self.moved)} of {len(self.changes)} numbers changed{more}"


def against(
    now: Results, before: Results, where: str, saved: Path | None = None, allowed: tuple[str, ...] = ()
) -> Against:
    """Every measurement of a candidate lane in either record; `saved` is where the new record lies, if it does."""
    told = refuse_unlike(now, before, where, allowed)
    return Against(where, changes(now, before), told, accept_command(now, Path(where), saved))


def accept_command(now: Results, baseline: Path, saved: Path | None) -> str:
    """Shell command that puts the new figures in place of the baseline."""
    target = shlex.quote(str(baseline))
    if saved is not None:
        return f"cp {shlex.quote(str(saved))} {target}"
    command = str(now.tool.get("command") or "qconvert compare ...")
    return f"{command} --json > {target}.new; mv {target}.new {target}"


def changes(now: Results, before: Results) -> list[Change]:
    """Those that changed first."""
    lanes = {one.name for record in (now, before) for one in record.lanes if one.role == "candidate"}
    old = {(m.name, m.lane, m.slice): m for m in before.measurements if m.lane in lanes}
    new = {(m.name, m.lane, m.slice): m for m in now.measurements if m.lane in lanes}
    found = [_change(key, old.get(key), new.get(key)) for key in dict.fromkeys([*new, *old])]
    order = {kind: number for number, kind in enumerate(("gone", "worse", "new", "moved", "better", OPEN, SAME))}
    return sorted(found, key=lambda change: order[change.kind])


def gated(verdict: Verdict, found: Against) -> Verdict:
    """The verdict with a failing row for every change for the worse; rows of an earlier gate are replaced."""
    rows = [row for row in verdict.rows if row.rule != RULE] + [change_row(one, found) for one in found.worse]
    return Verdict("fail" if found.worse else verdict.status, rows)


def change_row(one: Change, found: Against) -> VerdictRow:
    """A change for the worse as a failing row, with the way to accept it."""
    value, before = (None if m is None else m.value for m in (one.after, one.before))
    words = f"{show_value(before, one.unit)} in the baseline, {show_value(value, one.unit)} now"
    if one.after is None:
        words = f"{show_value(before, one.unit)} in the baseline, not measured now"
    ci = (None, None) if one.after is None else (one.after.ci_low, one.after.ci_high)
    return VerdictRow(
        "fail", RULE, one.lane, one.name, one.slice, value, ci, f"as in {found.path}",
        f"{words}; if this is intended, accept it: {found.accept}",
        _decided(one),
        None if one.after is None else one.after.n,
    )  # fmt: skip


def _decided(one: Change) -> str:
    if one.after is None:
        return "the baseline had it"
    return "counted in full in both runs" if one.after.exact else "the 95% intervals of both runs do not overlap"


def _change(key: tuple[str, str, str], before: Measurement | None, after: Measurement | None) -> Change:
    name, lane, slice_ = key
    old = before if before is not None and before.value is not None else None
    new = after if after is not None and after.value is not None else None
    either = after or before
    assert either is not None
    return Change(_kind(name, old, new), name, lane, slice_, either.unit, old, new)


def _kind(name: str, before: Measurement | None, after: Measurement | None) -> str:
    if before is None or after is None:
        return SAME if before is after else "gone" if after is None else "new"
    if before.value == after.value:
        return SAME
    old, new = _span(before), _span(after)
    if old is None or new is None or before.exact != after.exact:
        return OPEN
    if new[0] <= old[1] and old[0] <= new[1]:
        return SAME
    better = LABELS.get(name, ("", ""))[1]
    if not better:
        return "moved"
    return "better" if (new[0] > old[1]) == (better == "higher") else "worse"


def _span(one: Measurement) -> tuple[float, float] | None:
    """Where the number lies; None where nobody knows."""
    assert one.value is not None
    return (one.value, one.value) if one.exact else known_interval(one)

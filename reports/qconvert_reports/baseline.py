"""What changed between two records of the same comparison: this run against a blessed one.

A change counts as one where the two 95% intervals do not overlap (stricter than a test at 5%, so of many rows few stand
out by chance). A number counted in full (a weight's error) has no interval and counts where it differs by more than
ROUNDING: it is a sum of doubles, whose order, and with it the last digits, depends on the number of threads. Pairwise
sums of N terms differ by log2(N) * 2^-53 of themselves, 4e-15 for a billion. Informative by itself, the budget decides;
with `--gate-baseline` every change for the worse becomes a failing row of the verdict.

Unlike things are refused (`likeness`) unless the reader asks for them, and then the report says what was unlike. With
every failure stands the shell command that accepts the new figures as the baseline.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from qconvert_evals.results import Measurement, Results, Verdict, VerdictRow
from qconvert_reports.labels import LABELS, show_value
from qconvert_reports.likeness import Unlike, refuse_unlike

WORSE = ("gone", "worse")
RULE = "baseline"
ROUNDING = 1e-12  # relative; see the module


@dataclass(frozen=True)
class Change:
    """One measurement in both records; `kind` is "better", "worse", "moved", "same", "new" or "gone"."""

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
        return [one for one in self.changes if one.kind != "same"]

    @property
    def worse(self) -> list[Change]:
        """What changed for the worse, or is there no more."""
        return [one for one in self.changes if one.kind in WORSE]


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
    order = {kind: number for number, kind in enumerate(("gone", "worse", "new", "moved", "better", "same"))}
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
        "the 95% intervals of both runs do not overlap" if one.after is not None else "the baseline had it",
        None if one.after is None else one.after.n,
    )  # fmt: skip


def _change(key: tuple[str, str, str], before: Measurement | None, after: Measurement | None) -> Change:
    name, lane, slice_ = key
    old = before if before is not None and before.value is not None else None
    new = after if after is not None and after.value is not None else None
    either = after or before
    assert either is not None
    return Change(_kind(name, old, new), name, lane, slice_, either.unit, old, new)


def _kind(name: str, before: Measurement | None, after: Measurement | None) -> str:
    if before is None or after is None:
        return "same" if before is after else "gone" if after is None else "new"
    (old_low, old_high), (low, high) = _span(before), _span(after)
    slack = ROUNDING * max(abs(low), abs(high), abs(old_low), abs(old_high))
    if low <= old_high + slack and old_low <= high + slack:
        return "same"
    better = LABELS.get(name, ("", ""))[1]
    if not better:
        return "moved"
    return "better" if (low > old_high) == (better == "higher") else "worse"


def _span(one: Measurement) -> tuple[float, float]:
    assert one.value is not None
    return (one.value if one.ci_low is None else one.ci_low), (one.value if one.ci_high is None else one.ci_high)

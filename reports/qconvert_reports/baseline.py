"""What changed between two records of the same comparison: this run against a blessed one.

Informative only; the budget decides. A change counts as one where the two 95% intervals do not overlap (stricter than a
test at 5%, so of many rows few stand out by chance); a number without an interval counts where it differs at all.

Unlike things are refused: another base model (its files have other hashes), or other tokens, would make every row a
difference that no conversion caused.
"""

from __future__ import annotations

from dataclasses import dataclass

from qconvert.errors import UserError
from qconvert_evals.results import LaneIdentity, Measurement, Results
from qconvert_reports.labels import LABELS


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


def changes(now: Results, before: Results, where: str) -> list[Change]:
    """Every measurement of a candidate lane in either record, those that changed first."""
    _same_things(now, before, where)
    lanes = {one.name for record in (now, before) for one in record.lanes if one.role == "candidate"}
    old = {(m.name, m.lane, m.slice): m for m in before.measurements if m.lane in lanes}
    new = {(m.name, m.lane, m.slice): m for m in now.measurements if m.lane in lanes}
    found = [_change(key, old.get(key), new.get(key)) for key in dict.fromkeys([*new, *old])]
    order = {kind: number for number, kind in enumerate(("gone", "worse", "new", "moved", "better", "same"))}
    return sorted(found, key=lambda change: order[change.kind])


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
    if low <= old_high and old_low <= high:
        return "same"
    better = LABELS.get(name, ("", ""))[1]
    if not better:
        return "moved"
    return "better" if (low > old_high) == (better == "higher") else "worse"


def _span(one: Measurement) -> tuple[float, float]:
    assert one.value is not None
    return (one.value if one.ci_low is None else one.ci_low), (one.value if one.ci_high is None else one.ci_high)


def _same_things(now: Results, before: Results, where: str) -> None:
    base_now, base_before = _base(now), _base(before)
    for name in sorted(base_now.files.keys() | base_before.files.keys()):
        if base_now.files.get(name) != base_before.files.get(name):
            raise UserError(
                "the baseline speaks of another base model",
                where=f"{where}, {name}",
                expected=f"sha256 {base_now.files.get(name, 'none')}",
                found=f"sha256 {base_before.files.get(name, 'none')}",
                fix="make the baseline again with this model",
            )
    for key in TOKENS:
        if now.tool.get(key) != before.tool.get(key):
            raise UserError(
                "the baseline was measured on other tokens",
                where=f"{where}, tool.{key}",
                expected=repr(now.tool.get(key)),
                found=repr(before.tool.get(key)),
                fix="compare with the settings of the baseline, or make the baseline again",
            )


# Settings of a run that decide which tokens were measured.
TOKENS = ("tokens_sha256", "tokens", "documents", "sequences", "domains", "seq_len", "draft_tokens")


def _base(results: Results) -> LaneIdentity:
    base = next((one for one in results.lanes if one.role == "base"), None)
    if base is None:
        raise UserError("the results hold no base lane", fix="write them with `qconvert compare`")
    return base

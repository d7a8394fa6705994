"""The verdict as a reader wants it: one headline, and one line for each rule and lane, worst first.

A rule over `layer=*` has a verdict row for every layer. Here they become one group whose shown row is the worst of
them, so that a 48-layer model reads like a 4-layer one. `used` is how much of the allowance the worst row takes: value
/ limit for an upper bound, (1 - value) / (1 - limit) where no drift at all would be 1 (a lower bound on a fraction, an
upper bound on a ratio of two lanes), and nothing elsewhere. `margin` is the smallest of the group's rows (`decision`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from qconvert_evals.results import Results, Verdict, VerdictRow
from qconvert_reports.decision import THIN
from qconvert_reports.labels import label, show_difference, show_slice, show_value

ORDER = {"fail": 0, "inconclusive": 1, "improved": 2, "pass": 3, "not applicable": 4}
WORDS = {
    "pass": "Pass",
    "improved": "Improved",
    "fail": "Fail",
    "inconclusive": "Inconclusive",
    "not applicable": "Not applicable",
}


@dataclass(frozen=True)
class Group:
    """All rows of one rule for one lane."""

    status: str
    lane: str
    worst: VerdictRow
    rows: tuple[VerdictRow, ...]
    used: float | None
    why: str
    measured: str  # the worst row's number and interval as text
    interval: str

    @property
    def thinnest(self) -> VerdictRow | None:
        """The row of smallest margin, None where no row has one."""
        return thinnest(self.rows)

    @property
    def thin(self) -> bool:
        """Whether a row of it passes with less than THIN half-widths to spare."""
        return self.thinnest is not None and is_thin(self.thinnest)

    @property
    def bad(self) -> tuple[VerdictRow, ...]:
        """Rows that did not pass."""
        return tuple(row for row in self.rows if row.status in ("fail", "inconclusive"))

    @property
    def unreached(self) -> tuple[VerdictRow, ...]:
        """Rows of a group with numbers that have none, such as positions beyond the text."""
        return tuple(row for row in self.rows if row.status == "not applicable" and self.status != "not applicable")

    @property
    def what(self) -> str:
        """Measurement and slice in words; for several slices the worst of them."""
        where = "" if self.worst.slice in ("all", "-") else f" ({show_slice(self.worst.slice)})"
        return label(self.worst.measurement) + where if self.worst.measurement != "-" else "Any check at all"

    @property
    def line(self) -> str:
        """The gate line, as JUnit, Markdown and the terminal print it."""
        return gate_line(self.worst)


def thinnest(rows: Iterable[VerdictRow]) -> VerdictRow | None:
    """The row of smallest margin; exact rows and those without a number have none."""
    return min((row for row in rows if row.margin is not None), key=lambda row: row.margin or 0.0, default=None)


def is_thin(row: VerdictRow) -> bool:
    """A pass that the next run may not repeat."""
    return row.margin is not None and 0 <= row.margin < THIN


def show_margin(margin: float | None) -> str:
    """In half-widths; a dash where there is none."""
    return "–" if margin is None else f"{margin:.2f}" if abs(margin) < 100 else f"{margin:.0f}"


def margin_line(verdict: Verdict) -> str:
    """`smallest margin 2.31 half-widths: fp8 logits.kl_p99 (all)`, and how many are thin; "" where nothing has one."""
    worst = thinnest(verdict.rows)
    if worst is None:
        return ""
    thin = sum(is_thin(row) for row in verdict.rows)
    more = f"; {thin} under {THIN:g}" if thin else ""
    where = f"{worst.lane} {worst.measurement} ({worst.slice})"
    return f"smallest margin {show_margin(worst.margin)} half-widths: {where}{more}"


def gate_line(row: VerdictRow) -> str:
    """`FAIL fp8 logits.kl_mean (all): 0.31 [0.3, 0.32] is beyond the bound <= 0.02`."""
    return f"{row.status.upper()} {row.lane} {row.measurement} ({row.slice}): {row.reason}"


def headline(verdict: Verdict, results: Results) -> str:
    """One sentence for the top of every rendering."""
    names = [one.name for one in results.lanes if one.role == "candidate"]
    lanes = ", ".join(names) or "no candidate"
    counts = {status: sum(row.status == status for row in verdict.rows) for status in ORDER}
    judged = len(verdict.rows) - counts["not applicable"]
    if verdict.status == "pass":
        better = f", {counts['improved']} better than BF16 beyond noise" if counts["improved"] else ""
        return f"{lanes}: within the budget in all {judged} checks{better}."
    if verdict.status == "fail":
        bad = {row.lane for row in verdict.rows if row.status == "fail"}
        failing = ", ".join([name for name in names if name in bad] + sorted(bad.difference(names)))
        return f"{failing}: beyond the budget in {counts['fail']} of {judged} checks."
    return f"{lanes}: {counts['inconclusive']} of {judged} checks could not be decided, none failed."


def groups(results: Results) -> list[Group]:
    """Verdict rows by rule and lane, worst groups first, otherwise in the budget's order."""
    verdict = results.verdict
    rules: dict[str, dict[str, Any]] = (results.figures.get("budget") or {}).get("rules", {})
    collected: dict[tuple[str, str], list[VerdictRow]] = {}
    for row in verdict.rows if verdict is not None else ():
        collected.setdefault((row.lane, row.rule), []).append(row)
    units = {(m.name, m.lane, m.slice): m.unit for m in results.measurements}
    made = [_group(lane, rows, rules.get(name, {}), units) for (lane, name), rows in collected.items()]
    return sorted(made, key=lambda group: ORDER[group.status])


def _group(lane: str, rows: list[VerdictRow], rule: dict[str, Any], units: dict[tuple[str, str, str], str]) -> Group:
    used = {id(row): allowance_used(row, rule) for row in rows}
    worst = min(rows, key=lambda row: (ORDER[row.status], -(used[id(row)] or 0.0)))
    unit = units.get((worst.measurement, worst.lane, worst.slice), "")
    show = show_difference if "difference" in str(rule.get("bound")) else show_value
    low, high = worst.ci
    interval = "" if low is None or high is None or low == high else f"[{show(low, unit)}, {show(high, unit)}]"
    why, number = str(rule.get("why", "")), show(worst.value, unit)
    return Group(worst.status, lane, worst, tuple(rows), used[id(worst)], why, number, interval)


def allowance_used(row: VerdictRow, rule: dict[str, Any]) -> float | None:
    """Share of the allowance that the value takes; above 1 is beyond the bound."""
    bound, value = rule.get("bound"), row.value
    if value is None or "limit" not in rule or "noise" in str(bound):
        return None
    limit = float(rule["limit"]) * (0.01 if rule.get("unit") in ("%", "pp") else 1.0)
    if bound == "min":
        return (1 - value) / (1 - limit) if 0 <= value <= 1 and limit < 1 else None
    if row.measurement.endswith(("_ratio", "_recovery")) and limit > 1:
        return max(0.0, (value - 1) / (limit - 1))
    if "_abs_" in str(bound):
        value = abs(value)
    return max(0.0, value / limit) if limit != 0 else None

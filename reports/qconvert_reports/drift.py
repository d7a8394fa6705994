"""The verdict: every budget row held against the measurements of every candidate lane (`decision` says how).

The whole is `fail` if any row fails, else `inconclusive` if any row is, else `pass`; "improved" is a pass by name. A
lane that no row speaks about is inconclusive, never pass.

A measurement which the reference lanes have and a candidate lacks is a fail: it is how a lost MTP head shows. Where
nobody has it the row is inconclusive. Rows marked `only_if_base_has` are "not applicable" where the base itself lacks
the measurement, and so are positions of the context that no text reached (`_unreached`). What is too good to be true is
in `suspicion`.

Left out: corrections for many rows; a fail needs a whole interval beyond the bound, and the bounds stand well away from
no change. `benchmarks/gate_calibration.py` measures how often that goes wrong.
"""

from __future__ import annotations

from dataclasses import asdict

from qconvert_evals.results import LaneIdentity, Measurement, Results, Verdict, VerdictRow
from qconvert_reports.budget import Budget
from qconvert_reports.culprits import named_tensors
from qconvert_reports.decision import (
    FAIL,
    IMPROVED,
    INCONCLUSIVE,
    NOT_APPLICABLE,
    PASS,
    STRADDLES,
    TOO_FEW,
    Decision,
    decide,
)
from qconvert_reports.judged import Judged, judged
from qconvert_reports.labels import sample_noun, show_difference, show_value
from qconvert_reports.record import Record
from qconvert_reports.rules import AT_LEAST, AT_MOST, DIFFERENCE, OVERLAP, WITHIN, Rule, slice_matches
from qconvert_reports.suspicion import too_good

SIGNS = {AT_MOST: "≤", AT_LEAST: "≥", WITHIN: "within ±"}
UNREACHED = "no text was as long as that"
EXIT_CODES = {PASS: 0, FAIL: 1, INCONCLUSIVE: 3}


def judge(results: Results, budget: Budget) -> Verdict:
    """Hold the budget against the results; worst rows first is the renderer's business, here they keep budget order."""
    record = Record(results)
    rows = [row for lane in results.lanes if lane.role == "candidate" for row in _judge_lane(record, lane, budget)]
    if not rows:
        reason = "the results hold no candidate lane: nothing was compared"
        rows = [_row(INCONCLUSIVE, "no candidate", "-", "-", "-", reason, "no candidate lane")]
    return Verdict(status=_worst([row.status for row in rows]), rows=rows)


def _worst(statuses: list[str]) -> str:
    if FAIL in statuses:
        return FAIL
    if INCONCLUSIVE in statuses or not {PASS, IMPROVED} & set(statuses):
        return INCONCLUSIVE
    return PASS


def _judge_lane(record: Record, lane: LaneIdentity, budget: Budget) -> list[VerdictRow]:
    rules = budget.rules_for(lane)
    if not rules:
        reason = f"no section of {budget.name} applies to lane {lane.name}; name it in a section's lanes or schemes"
        return [_row(INCONCLUSIVE, "no budget", lane.name, "-", "-", reason, "no row speaks about this lane")]
    rows = [row for rule in rules for row in _judge_rule(record, lane.name, rule)]
    return rows + too_good(record, lane.name)


def _judge_rule(record: Record, lane: str, rule: Rule) -> list[VerdictRow]:
    lacking = record.base_lacks(rule) if rule.only_if_base_has else None
    if lacking is not None:
        reason, decided = f"{record.base}: {lacking}", "the base lacks it, and the row is only for where it has it"
        return [_row(NOT_APPLICABLE, rule.name, lane, rule.measurement, rule.slice, reason, decided, rule)]
    rows = [_judge_one(record, rule, one) for one in record.covered(lane, rule)]
    for name, slice_, why in record.absent(lane, rule):
        others = record.have_it(name, slice_)
        status = FAIL if others else INCONCLUSIVE
        beside = f" (measured for {' and '.join(others)})" if others else ""
        decided = "BF16 has this measurement, the candidate lost it" if others else "nobody has this measurement"
        rows.append(_row(status, rule.name, lane, name, slice_, f"not measured: {why}{beside}", decided, rule))
    if not rows:
        reason, decided = "not measured: no lane has such a measurement and slice", "nobody has this measurement"
        rows.append(_row(INCONCLUSIVE, rule.name, lane, rule.measurement, rule.slice, reason, decided, rule))
    return rows + _unreached(record, rule, lane)


def _unreached(record: Record, rule: Rule, lane: str) -> list[VerdictRow]:
    """A rule along the context speaks of positions that no text reached as well: these are not measured, not passed."""
    at = record.beyond_the_text()
    if not at or not slice_matches(at, rule.slice):
        return []
    reason = f"not measured: the longest sequence has {record.longest:,} tokens, the context {record.context:,}"
    return [_row(NOT_APPLICABLE, rule.name, lane, rule.measurement, at, reason, UNREACHED, rule)]


def _judge_one(record: Record, rule: Rule, one: Measurement) -> VerdictRow:
    limit = rule.limit_in(one.unit)
    if limit is None:
        reason = f"not judged: the budget speaks of {rule.unit}, the measurement is in {one.unit or 'no unit'}"
        return _row(INCONCLUSIVE, rule.name, one.lane, one.name, one.slice, reason, "the row's unit does not fit", rule)
    number = judged(record, rule, one, limit)
    if isinstance(number, str):
        return _row(INCONCLUSIVE, rule.name, one.lane, one.name, one.slice, number, "nothing to hold it against", rule)
    decision = decide(rule, number, one.name)
    shown = show_difference if rule.against == DIFFERENCE or rule.unit == "pp" else show_value
    allowed = shown(number.limit, one.unit).removeprefix("+" if rule.side == WITHIN else "")
    bound = f"{SIGNS[rule.side]} {allowed}{number.note}".replace("± ", "±")
    texts = [shown(part, one.unit) for part in (number.value, number.low, number.high)]
    reason = _reason(number, decision, rule, texts, bound, one)
    if decision.status not in (PASS, IMPROVED):
        reason += named_tensors(record.figures, one)
    return VerdictRow(
        decision.status, rule.name, one.lane, one.name, one.slice, number.value, (number.low, number.high), bound,
        reason, decision.decided, number.n, decision.needed_n, decision.margin,
    )  # fmt: skip


def _reason(number: Judged, decision: Decision, rule: Rule, texts: list[str], bound: str, one: Measurement) -> str:
    """`0.31 [0.3, 0.32] is beyond the bound ≤ 0.02`, and what would decide where nothing did."""
    value, low, high = texts
    measured = f"{value} [{low}, {high}]" if number.low < number.high else value
    noun = sample_noun(one.name)
    if decision.decided == TOO_FEW:
        return f"{measured}, but n = {number.n:,} {noun} are less than the {rule.min_n:,} that decide; bound {bound}"
    if decision.decided == STRADDLES:
        needed = decision.needed_n
        more = f"needs about {needed:,} {noun}" if needed else f"no number of {noun} decides at this value"
        return f"{measured}: its interval straddles the bound {bound}; n = {number.n:,}, {more}"
    if decision.status == INCONCLUSIVE:
        why = "too few documents, or none that differ"
        return f"{measured} is within the bound {bound}, but its interval is not known: {why}"
    if decision.status == IMPROVED:
        return f"{measured} is within the bound {bound}, and better than no change by more than the noise"
    return f"{measured} is {'within' if decision.status == PASS else 'beyond'} the bound {bound}"


def _row(
    status: str, rule: str, lane: str, name: str, slice_: str, reason: str, decided: str, of: Rule | None = None
) -> VerdictRow:
    """A row without a judged number."""
    bound = "" if of is None else f"{SIGNS[of.side]} {show_value(of.limit, of.unit or '')}".replace("± ", "±")
    if of is not None and of.against == OVERLAP:
        bound = f"{SIGNS[of.side]} the overlap at noise {of.limit:g}"
    return VerdictRow(status, rule, lane, name, slice_, None, (None, None), bound, reason, decided)


def settle(results: Results, budget: Budget) -> Verdict:
    """Judge, and keep the verdict and the rules behind it in the record, so that a report needs no budget file."""
    results.verdict = judge(results, budget)
    rules = {rule.name: asdict(rule) for section in budget.sections for rule in section.rules}
    known = {"name": budget.name, "source": budget.source, "digest": budget.digest}
    results.figures["budget"] = {**known, "rules": rules}
    return results.verdict

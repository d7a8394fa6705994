"""The verdict: every budget row held against the measurements of every candidate lane.

With the 95% interval [low, high] of the judged number and a bound L that it must not exceed (the mirror image for
`min`):

    pass          high <= L        wholly within
    fail          low > L          wholly beyond
    inconclusive  otherwise        the interval straddles L, or n < min_n, or there is no number and no sign of a fault

A number that was counted in full (a weight's error) has an interval of width zero. A number whose interval is not known
comes from fewer than two documents: beyond the bound it fails, within it is inconclusive, because one document is no
evidence of health. The whole is `fail` if any row fails, else `inconclusive` if any row is, else `pass`; a lane that no
row speaks about is inconclusive, never pass.

A measurement which the reference lanes have and a candidate lacks is a fail: it is how a lost MTP head shows. Where
nobody has it the row is inconclusive. Rows marked `only_if_base_has` are "not applicable" where the base itself lacks
the measurement.

`difference` rows use the paired measurement `<name>_difference` where the record holds one. Otherwise the interval of
the difference is

    d - sqrt((c - c_low)^2 + (b_high - b)^2)  ..  d + sqrt((c_high - c)^2 + (b - b_low)^2)   (Newcombe, square-and-add)

which takes the lanes for independent. They share their tokens and their errors correlate positively, so it is too wide:
it errs towards inconclusive, not towards pass. Left out: corrections for many rows; a fail needs a whole interval
beyond the bound, which is rare by chance.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import hypot

from qconvert_evals.results import LaneIdentity, Measurement, Missing, Results, Verdict, VerdictRow
from qconvert_reports.budget import BOUNDS, Budget, Rule
from qconvert_reports.culprits import named_tensors
from qconvert_reports.labels import conditions, show_difference, show_value

PASS, FAIL, INCONCLUSIVE, NOT_APPLICABLE = "pass", "fail", "inconclusive", "not applicable"
SIGNS = {"<=": "≤", ">=": "≥"}
EXIT_CODES = {PASS: 0, FAIL: 1, INCONCLUSIVE: 3}


@dataclass(frozen=True)
class _Judged:
    """The number that a bound is held against, with its interval."""

    value: float
    low: float
    high: float
    limit: float
    note: str
    interval_known: bool


def judge(results: Results, budget: Budget) -> Verdict:
    """Hold the budget against the results; worst rows first is the renderer's business, here they keep budget order."""
    record = _Record(results)
    rows = [row for lane in results.lanes if lane.role == "candidate" for row in _judge_lane(record, lane, budget)]
    if not rows:
        rows = [
            _row(
                INCONCLUSIVE, "no candidate", "-", "-", "-", "the results hold no candidate lane: nothing was compared"
            )
        ]
    return Verdict(status=_worst([row.status for row in rows]), rows=rows)


def _worst(statuses: list[str]) -> str:
    if FAIL in statuses:
        return FAIL
    if INCONCLUSIVE in statuses or PASS not in statuses:
        return INCONCLUSIVE
    return PASS


class _Record:
    """The results, indexed by what the judge asks for."""

    def __init__(self, results: Results) -> None:
        self.by_lane: dict[str, list[Measurement]] = {}
        self.by_key = {(m.name, m.lane, m.slice): m for m in results.measurements}
        self.missing: list[Missing] = results.missing
        self.figures = results.figures
        self.base = next((lane.name for lane in results.lanes if lane.role == "base"), "")
        self.references = [lane.name for lane in results.lanes if lane.role in ("base", "noise")]
        for one in results.measurements:
            self.by_lane.setdefault(one.lane, []).append(one)

    def covered(self, lane: str, rule: Rule) -> list[Measurement]:
        return [one for one in self.by_lane.get(lane, ()) if one.value is not None and rule.covers(one.name, one.slice)]

    def why_missing(self, lane: str, name: str, slice_: str) -> str | None:
        """The reason given for this slice or a wider one: what is missing for a draft step is so for every domain."""
        wanted = conditions(slice_).items()
        for one in self.missing:
            if (one.lane, one.name) == (lane, name) and (one.slice == "all" or conditions(one.slice).items() <= wanted):
                return one.why
        return None

    def absent(self, lane: str, rule: Rule) -> list[tuple[str, str, str]]:
        """(measurement, slice, why) of what the rule covers, the candidate lacks, and somebody knows of."""
        have = {(one.name, one.slice) for one in self.covered(lane, rule)}
        keys = [(one.name, one.slice) for name in self.references for one in self.covered(name, rule)]
        keys += [(one.name, one.slice) for one in self.missing if one.lane == lane and _speaks_of(rule, one)]
        keys += [
            (m.name, m.slice) for m in self.by_lane.get(lane, ()) if m.value is None and rule.covers(m.name, m.slice)
        ]
        gone = [key for key in dict.fromkeys(keys) if key not in have]
        return [(name, at, self.why_missing(lane, name, at) or "it is absent from the results") for name, at in gone]

    def base_lacks(self, rule: Rule) -> str | None:
        """Why the base lane has nothing for this rule, or None where it has something."""
        if self.covered(self.base, rule):
            return None
        whys = [one.why for one in self.missing if one.lane == self.base and _speaks_of(rule, one)]
        return whys[0] if whys else "the base lane has no such measurement"

    def have_it(self, name: str, slice_: str) -> list[str]:
        found = ((lane, self.by_key.get((name, lane, slice_))) for lane in self.references)
        return [lane for lane, one in found if one is not None and one.value is not None]


def _speaks_of(rule: Rule, missing: Missing) -> bool:
    """A `missing` entry for the whole ("all") also takes away every slice that a rule may name."""
    return rule.covers(missing.name, missing.slice) or (
        missing.slice == "all" and rule.covers(missing.name, rule.slice)
    )


def _judge_lane(record: _Record, lane: LaneIdentity, budget: Budget) -> list[VerdictRow]:
    rules = budget.rules_for(lane)
    if not rules:
        reason = f"no section of {budget.name} applies to lane {lane.name}; name it in a section's lanes or schemes"
        return [_row(INCONCLUSIVE, "no budget", lane.name, "-", "-", reason)]
    return [row for rule in rules for row in _judge_rule(record, lane.name, rule)]


def _judge_rule(record: _Record, lane: str, rule: Rule) -> list[VerdictRow]:
    lacking = record.base_lacks(rule) if rule.only_if_base_has else None
    if lacking is not None:
        return [_row(NOT_APPLICABLE, rule.name, lane, rule.measurement, rule.slice, f"{record.base}: {lacking}", rule)]
    rows = [_judge_one(record, rule, one) for one in record.covered(lane, rule)]
    for name, slice_, why in record.absent(lane, rule):
        others = record.have_it(name, slice_)
        status = FAIL if others else INCONCLUSIVE
        beside = f" (measured for {' and '.join(others)})" if others else ""
        rows.append(_row(status, rule.name, lane, name, slice_, f"not measured: {why}{beside}", rule))
    if not rows:
        reason = "not measured: no lane has such a measurement and slice"
        rows.append(_row(INCONCLUSIVE, rule.name, lane, rule.measurement, rule.slice, reason, rule))
    return rows


def _judge_one(record: _Record, rule: Rule, one: Measurement) -> VerdictRow:
    limit = rule.limit_in(one.unit)
    if limit is None:
        reason = f"not judged: the budget speaks of {rule.unit}, the measurement is in {one.unit}"
        return _row(INCONCLUSIVE, rule.name, one.lane, one.name, one.slice, reason, rule)
    judged = _judged(record, rule, one, limit)
    if isinstance(judged, str):
        return _row(INCONCLUSIVE, rule.name, one.lane, one.name, one.slice, judged, rule)
    side = BOUNDS[rule.bound][0]
    status = _status(judged, side)
    verb = {PASS: " is within", FAIL: " is beyond", INCONCLUSIVE: ": its interval straddles"}[status]
    show = show_difference if BOUNDS[rule.bound][1] == "difference" else show_value
    number, low, high, allowed = (
        show(part, one.unit) for part in (judged.value, judged.low, judged.high, judged.limit)
    )
    interval = f" [{low}, {high}]" * (judged.low < judged.high)
    bound = f"{SIGNS[side]} {allowed}{judged.note}"
    reason = f"{number}{interval}{verb} the bound {bound}"
    if status != PASS:
        reason += named_tensors(record.figures, one)
    if one.n < rule.min_n:
        status, reason = INCONCLUSIVE, f"{reason}, but n = {one.n} is less than the {rule.min_n} that decide"
    elif status == PASS and not judged.interval_known:
        status, reason = INCONCLUSIVE, f"{reason}, but its interval is not known: too few documents"
    return VerdictRow(
        status, rule.name, one.lane, one.name, one.slice, judged.value, (judged.low, judged.high), bound, reason
    )


def _status(judged: _Judged, side: str) -> str:
    low, high, limit = judged.low, judged.high, judged.limit
    if side == ">=":
        low, high, limit = -high, -low, -limit
    if high <= limit:
        return PASS
    return FAIL if low > limit else INCONCLUSIVE


def _judged(record: _Record, rule: Rule, one: Measurement, limit: float) -> _Judged | str:
    """The number to judge, or the reason why there is none."""
    assert one.value is not None  # `covered` returns nothing else
    kind = BOUNDS[rule.bound][1]
    if kind == "difference":
        return _difference(record, one, limit)
    note = ""
    if kind == "noise":
        if one.noise_floor is None:
            return "not judged: this measurement has no noise floor"
        limit, note = limit * one.noise_floor, f" ({rule.limit:g} x noise floor)"
    return _Judged(one.value, *_interval(one), limit, note, _known(one))


def _difference(record: _Record, one: Measurement, limit: float) -> _Judged | str:
    note = f" against {record.base}"
    paired = record.by_key.get((f"{one.name}_difference", one.lane, one.slice))
    if paired is not None and paired.value is not None:
        return _Judged(paired.value, *_interval(paired), limit, note, _known(paired))
    base = record.by_key.get((one.name, record.base, one.slice))
    if base is None or base.value is None or one.value is None:
        return f"not judged: {record.base} has no such measurement to subtract"
    (low, high), (base_low, base_high) = _interval(one), _interval(base)
    difference = one.value - base.value
    below = hypot(one.value - low, base_high - base.value)
    above = hypot(high - one.value, base.value - base_low)
    return _Judged(difference, difference - below, difference + above, limit, note, _known(one) and _known(base))


def _known(one: Measurement) -> bool:
    return one.ci_low is not None and one.ci_high is not None


def _interval(one: Measurement) -> tuple[float, float]:
    """The interval, stretched to hold the value; a side that is not known is the value itself."""
    assert one.value is not None
    low = one.value if one.ci_low is None else min(one.ci_low, one.value)
    high = one.value if one.ci_high is None else max(one.ci_high, one.value)
    return low, high


def _row(status: str, rule: str, lane: str, name: str, slice_: str, reason: str, of: Rule | None = None) -> VerdictRow:
    """A row without a judged number."""
    bound = "" if of is None else f"{SIGNS[BOUNDS[of.bound][0]]} {show_value(of.limit, of.unit or '')}"
    return VerdictRow(status, rule, lane, name, slice_, None, (None, None), bound, reason)


def settle(results: Results, budget: Budget) -> Verdict:
    """Judge, and keep the verdict and the rules behind it in the record, so that a report needs no budget file."""
    results.verdict = judge(results, budget)
    rules = {rule.name: asdict(rule) for section in budget.sections for rule in section.rules}
    results.figures["budget"] = {"name": budget.name, "source": budget.source, "rules": rules}
    return results.verdict

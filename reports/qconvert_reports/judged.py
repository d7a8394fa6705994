"""The number that a bound is held against, with its interval and the bound in its unit.

`difference` rows use the paired measurement `<name>_difference` where the record holds one. Otherwise the interval of
the difference is

    d - sqrt((c - c_low)^2 + (b_high - b)^2)  ..  d + sqrt((c_high - c)^2 + (b - b_low)^2)   (Newcombe, square-and-add)

which takes the two for independent. They share their tokens and their errors correlate positively, so it is too wide:
it errs towards inconclusive, not towards pass.

A number is exact where the record says so. An interval without width of a sampled number says nothing about its spread,
which then counts as unknown, as with a single document.

Where no pair of n differs, the paired interval has no width, which would let thirty answers prove anything. With 95%
confidence the share of differing pairs is then at most 1 - 0.05^(1/n), about 3 / n (rule of three), and no difference
of two scores is larger than that share.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot

from qconvert_evals.results import Measurement
from qconvert_reports.record import Record
from qconvert_reports.routing_noise import expected_overlap
from qconvert_reports.rules import DIFFERENCE, NOISE, OVERLAP, Rule


@dataclass(frozen=True)
class Judged:
    """Value, interval and limit; `n` samples; `no_change` is the value without any drift, `noise` how far the
    lane's noise lane is from it, None where a measurement has no such point."""

    value: float
    low: float
    high: float
    limit: float
    n: int
    interval_known: bool
    note: str = ""
    exact: bool = False  # counted in full, so that there is no interval
    rare: bool = False  # the interval is the rule of three's, which shrinks with n, not with its square root
    no_change: float | None = None
    noise: float = 0.0


def judged(record: Record, rule: Rule, one: Measurement, limit: float) -> Judged | str:
    """The number to judge, or the reason why there is none."""
    assert one.value is not None  # `covered` returns nothing else
    if rule.against == DIFFERENCE:
        return _from_base(record, one, limit)
    note = ""
    if rule.against == OVERLAP:
        if record.router is None:
            return "not judged: the record does not say how many of how many experts are chosen"
        chosen, experts = record.router
        limit, note = expected_overlap(chosen, experts, limit), f" ({limit:g} noise, {chosen} of {experts} experts)"
    if rule.against == NOISE:
        if one.noise_floor is None:
            return "not judged: this measurement has no noise floor"
        if one.noise_floor == 0 and one.value != 0:
            return "not judged: the noise floor is exactly 0, of which every multiple is 0"
        limit, note = limit * abs(one.noise_floor), f" ({rule.limit:g} x noise floor)"
    no_change = 1.0 if one.name.endswith(("_ratio", "_recovery")) else None
    noise = 0.0 if no_change is None or one.noise_floor is None else abs(one.noise_floor - no_change)
    return Judged(
        one.value, *interval(one), limit, one.n, _known(one), note, one.exact, no_change=no_change, noise=noise
    )


def _from_base(record: Record, one: Measurement, limit: float) -> Judged | str:
    note, name = f" against {record.base}", f"{one.name}_difference"
    paired = record.measured(name, one.lane, one.slice)
    if paired is not None and paired.value is not None:
        low, high = interval(paired)
        noise = abs(paired.noise_floor or 0.0)
        rare = paired.value == low == high == 0 and paired.unit == "fraction" and paired.n > 0
        if rare:
            high = 1 - 0.05 ** (1 / paired.n)
            low, note = -high, f"{note}, none of {paired.n:,} pairs differs"
        known = rare or _known(paired)
        return Judged(paired.value, low, high, limit, paired.n, known, note, paired.exact, rare, 0.0, noise)
    base = record.measured(one.name, record.base, one.slice)
    if base is None:
        return f"not judged: {record.base} has no such measurement to subtract"
    return _independent(one, base, limit, note, 0.0, record.noise_of_value(one))


def _independent(
    one: Measurement, other: Measurement, limit: float, note: str, no_change: float | None, noise: float
) -> Judged:
    assert one.value is not None and other.value is not None
    (low, high), (other_low, other_high) = interval(one), interval(other)
    difference = one.value - other.value
    below = hypot(one.value - low, other_high - other.value)
    above = hypot(high - one.value, other.value - other_low)
    known = _known(one) and _known(other)
    edges = difference - below, difference + above
    exact, n = one.exact and other.exact, min(one.n, other.n)
    return Judged(difference, *edges, limit, n, known, note, exact, no_change=no_change, noise=noise)


def _known(one: Measurement) -> bool:
    return one.exact or known_interval(one) is not None


def known_interval(one: Measurement) -> tuple[float, float] | None:
    """The 95% interval of a sampled number; None where its spread is unknown: there is no interval, or one without
    width, because the few documents happen to agree."""
    if one.exact or one.ci_low is None or one.ci_high is None or one.ci_low >= one.ci_high:
        return None
    return one.ci_low, one.ci_high


def interval(one: Measurement) -> tuple[float, float]:
    """The interval, stretched to hold the value; a side that is not known is the value itself."""
    assert one.value is not None
    low = one.value if one.ci_low is None else min(one.ci_low, one.value)
    high = one.value if one.ci_high is None else max(one.ci_high, one.value)
    return low, high

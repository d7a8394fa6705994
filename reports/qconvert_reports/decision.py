"""From a number, its 95% interval [low, high] and a bound L to a status, and the rule that decided in words.

For a bound that must not be exceeded (mirror image for `min`, both sides for `within`):

    pass          high <= L        wholly within
    fail          low > L          wholly beyond
    inconclusive  otherwise        the interval straddles L
    improved      a pass whose whole interval lies on the good side of "no change", by more than the noise floor, with
                  NAMED_FROM samples at least, since a lucky interval over a handful is no improvement

A number counted in full (a weight's error) is its own interval. A number whose interval is not known comes from fewer
than two documents, or from documents that agree to the last digit: beyond the bound it fails, within it is
inconclusive, because that is no evidence of health. So is one with fewer samples than the row demands.

What would decide: half-widths shrink with the square root of n, so a value at distance g from the bound whose interval
reaches h towards it needs  n (h / g)^2  samples of the same kind. That is an order of magnitude, since the value moves
too: a value on the bound itself needs infinitely many.

The margin says how far the decision is from another one: the distance between the interval and the bound in half-widths
of the interval,

    (L - high) / half    pass, positive        (L - low) / half    fail, negative        0    the interval holds L

with half = (high - low) / 2 (mirror image for `min`; the nearer side for `within`). At 0 the next run on other text, or
on another processor, may come out open; the estimate would have to move by 1.96 (1 + margin) standard errors to cross
the bound. A number counted in full has none, since it does not vary; nor has one without an interval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from qconvert_reports.judged import Judged
from qconvert_reports.labels import LABELS
from qconvert_reports.rules import AT_LEAST, AT_MOST, WITHIN, Rule

PASS, IMPROVED, FAIL, INCONCLUSIVE, NOT_APPLICABLE = "pass", "improved", "fail", "inconclusive", "not applicable"
NAMED_FROM = 100  # llama.cpp gives no statistics under as many tokens either
THIN = 1.5  # half-widths; a row with less is marked, since one run in 600 of the same kind may come out open
HOPELESS = 1e5  # half-widths from the bound; nobody will ever run ten thousand million times as many samples

WHOLLY_WITHIN = "the whole 95% interval is within the bound"
WHOLLY_BEYOND = "the whole 95% interval is beyond the bound"
COUNTED_WITHIN = "counted in full, and within the bound"
COUNTED_BEYOND = "counted in full, and beyond the bound"
STRADDLES = "the 95% interval straddles the bound"
ALONE_BEYOND = "beyond the bound; too few documents or tokens, or none that differ, so there is no interval"
ALONE_WITHIN = "within the bound, but too few documents or tokens, or none that differ, are no evidence of health"
BETTER = "the whole 95% interval is better than no change, by more than the noise floor"
TOO_FEW = "fewer samples than the row demands"


@dataclass(frozen=True)
class Decision:
    """A status, the rule that led to it, about how many samples would decide where none did, and the margin."""

    status: str
    decided: str
    needed_n: int | None = None
    margin: float | None = None


def decide(rule: Rule, number: Judged, measurement: str) -> Decision:
    """Hold the number against the rule's bound."""
    status = _side(number, rule.side)
    needed = _needed(number, rule.side) if status == INCONCLUSIVE else None
    if number.n < rule.min_n:
        return Decision(INCONCLUSIVE, TOO_FEW, max(rule.min_n, needed or 0))
    if not number.interval_known:
        return Decision(FAIL, ALONE_BEYOND) if status == FAIL else Decision(INCONCLUSIVE, ALONE_WITHIN)
    distance = margin(number, rule.side)
    if status == PASS and _improved(rule, number, measurement):
        return Decision(IMPROVED, BETTER, None, distance)
    words = {PASS: WHOLLY_WITHIN, FAIL: WHOLLY_BEYOND, INCONCLUSIVE: STRADDLES}
    if number.exact:
        words |= {PASS: COUNTED_WITHIN, FAIL: COUNTED_BEYOND}
    return Decision(status, words[status], needed, distance)


def margin(number: Judged, side: str) -> float | None:
    """Distance between interval and bound in half-widths, positive within; None without an interval of some width."""
    low, high, limit = number.low, number.high, number.limit
    half = (high - low) / 2
    if number.exact or not number.interval_known or not half > 0:
        return None
    if side == WITHIN:
        return min(_room(low, high, limit), _room(-high, -low, limit)) / half
    return (_room(-high, -low, -limit) if side == AT_LEAST else _room(low, high, limit)) / half


def _room(low: float, high: float, limit: float) -> float:
    """Between an interval and the limit above it: negative where all of it is beyond, 0 where it holds the limit."""
    return max(0.0, limit - high) + min(0.0, limit - low)


def _side(number: Judged, side: str) -> str:
    low, high, limit = number.low, number.high, number.limit
    if side == WITHIN:
        outside = low > limit or high < -limit
        return PASS if -limit <= low and high <= limit else FAIL if outside else INCONCLUSIVE
    if side == AT_LEAST:
        low, high, limit = -high, -low, -limit
    if high <= limit:
        return PASS
    return FAIL if low > limit else INCONCLUSIVE


def _needed(number: Judged, side: str) -> int | None:
    """Samples at which an interval around the same value would leave the bound; None where none would."""
    up = side == AT_MOST or (side == WITHIN and number.value >= 0)  # which end of the bound is the near one
    value, limit = (number.value, number.limit) if up else (-number.value, abs(number.limit))
    if side == AT_LEAST:
        limit = -number.limit
    above, below = number.high - number.value, number.value - number.low
    if not up:
        above, below = below, above
    gap = limit - value
    half = above if gap > 0 else below
    if side == WITHIN and gap > 0:
        half = max(above, below * gap / (limit + value)) if limit + value > 0 else above
    if half == 0 or half > HOPELESS * abs(gap):
        return None
    return _rounded_up(number.n * (half / abs(gap)) ** (1 if number.rare else 2))


def _rounded_up(needed: float) -> int:
    """To two digits: more would claim a precision that the estimate does not have."""
    step: int = 10 ** max(0, math.floor(math.log10(max(needed, 1))) - 1)
    return math.ceil(needed / step) * step


def _improved(rule: Rule, number: Judged, measurement: str) -> bool:
    if number.no_change is None or number.exact or number.n < NAMED_FROM:
        return False
    higher = rule.side == AT_LEAST
    if rule.side == WITHIN:
        better = LABELS.get(measurement, ("", ""))[1]
        if not better:
            return False
        higher = better == "higher"
    if higher:
        return number.low > number.no_change + number.noise
    return number.high < number.no_change - number.noise

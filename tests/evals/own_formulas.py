"""The same statistics written out by hand: witnesses beside the libraries that the package takes them from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from statistics import NormalDist


def t_within(t: float, df: int) -> float:
    """P(|T| <= t) of Student's t: a finite sum in cos(theta), theta = atan(t / sqrt(df)) (Abramowitz & Stegun, 26.7.3
    and 26.7.4)."""
    theta = math.atan(t / math.sqrt(df))
    cosine, sine = math.cos(theta), math.sin(theta)
    term, total = (cosine, 0.0) if df % 2 else (1.0, 0.0)
    for k in range(df % 2, df - 1, 2):  # powers of the cosine: odd up to df-2, or even up to df-2
        total += term
        term *= cosine * cosine * (k + 1) / (k + 2)
    return 2 / math.pi * (theta + sine * total) if df % 2 else sine * total


def one_sided(t: float, df: int) -> float:
    """P(T > t)."""
    tail = (1 - t_within(abs(t), df)) / 2
    return tail if t > 0 else 1 - tail


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided exact p, in whole numbers."""
    n, few = lost + gained, min(lost, gained)
    return float(min(Fraction(1), Fraction(2 * sum(math.comb(n, k) for k in range(few + 1)), 2**n)))


def wilson(successes: float, trials: float) -> tuple[float, float]:
    """The roots p of (share - p)^2 = z^2 p (1 - p) / n."""
    z, share = NormalDist().inv_cdf(0.975), successes / trials
    a, b, c = 1 + z * z / trials, -(2 * share + z * z / trials), share * share
    root = math.sqrt(max(0.0, b * b - 4 * a * c))
    return max(0.0, (-b - root) / (2 * a)), min(1.0, (-b + root) / (2 * a))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values in the order given."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda one: p_values[one])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def tost(values: Sequence[float], margin: float) -> tuple[float, float]:
    """P of "worse by the margin or more" and of "different by it or more" for independent differences."""
    n = len(values)
    mean = math.fsum(values) / n
    error = math.sqrt(math.fsum((one - mean) ** 2 for one in values) / (n - 1) / n)
    worse, better = (one_sided(distance / error, n - 1) for distance in (mean + margin, margin - mean))
    return worse, max(worse, better)

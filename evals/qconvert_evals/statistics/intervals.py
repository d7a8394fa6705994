"""Intervals for numbers measured on tokens, where the documents, not the tokens, are the independent draws.

Tokens of one document resemble each other, so an interval that counts tokens as independent is too narrow (by a
factor of three is not rare). Two methods, both with the document as the unit:

- *Linearised*: an estimate T has an influence value z_i per token, T's first-order change when that token is weighed
  more. With G documents and z_g the sum over document g,   var(T) = G / (G - 1) * sum_g (z_g - mean z)^2,   and T +-
  t(0.975, G - 1) * sd. Means, ratios, correlations and functions of them are all of this kind, and a difference
  between two lanes on the same tokens is just a mean of differences, so pairing needs no formula of its own.
- *Cluster bootstrap*: documents drawn with replacement, for quantiles, which have no useful influence value. Seeded,
  so that the same numbers always give the same interval. For a maximum or minimum it says only how far the extreme
  hangs on single documents: no resample can exceed the largest value seen.

With fewer than two documents there is no interval: bounds are None, never a guess. A proportion of exactly 0 or 1 has
no spread between documents; its interval is Wilson's on the tokens, which is not zero wide. A quantity counted in
full, such as the error of a weight tensor, has no sampling error: `exact` gives it bounds equal to the value.

Left out: model-based intervals (mixed effects), which need assumptions that no reader of a report could check.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

CONFIDENCE = 0.95
RESAMPLES = 400
SEED = 20260101
_CELLS = 4_000_000  # resamples x tokens held at once in the bootstrap: 32 MB of int64


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; `value` is None when there was nothing to measure, `exact` says that it was counted in
    full and has no sampling error."""

    value: float | None
    n: int
    low: float | None = None
    high: float | None = None
    exact: bool = False

    def mapped(self, increasing: Callable[[float], float]) -> Estimate:
        """The estimate of an increasing function of the value (exp, for a perplexity): the bounds map along."""
        value, low, high = (None if x is None else increasing(x) for x in (self.value, self.low, self.high))
        return Estimate(value, self.n, low, high)


NOTHING = Estimate(None, 0)


def exact(value: float, n: int) -> Estimate:
    """A value without sampling error."""
    return Estimate(value, n, value, value, exact=True)


@lru_cache(maxsize=256)
def t_quantile(df: int, confidence: float = CONFIDENCE) -> float:
    """Two-sided quantile of Student's t for a whole number of degrees of freedom.

    By bisection on P(|T| <= t), which is a finite sum in cos(theta), theta = atan(t / sqrt(df)) (Abramowitz & Stegun,
    26.7.3 and 26.7.4). Above 1000 degrees the normal quantile is right to 0.2% and taken instead.
    """
    if df > 1000:
        return NormalDist().inv_cdf(0.5 + confidence / 2)
    low, high = 0.0, 1.0
    while t_within(high, df) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_within(middle, df) < confidence else (low, middle)
    return high


def t_within(t: float, df: int) -> float:
    """P(|T| <= t)."""
    theta = math.atan(t / math.sqrt(df))
    cosine, sine = math.cos(theta), math.sin(theta)
    term, total = (cosine, 0.0) if df % 2 else (1.0, 0.0)
    for k in range(df % 2, df - 1, 2):  # powers of the cosine: odd up to df-2, or even up to df-2
        total += term
        term *= cosine * cosine * (k + 1) / (k + 2)
    return 2 / math.pi * (theta + sine * total) if df % 2 else sine * total


def document_sums(values: Array, documents: Index) -> Array:
    """[n] summed by document -> [G], in order of the document number."""
    _, inverse = np.unique(documents, return_inverse=True)
    return np.asarray(np.bincount(inverse, weights=values), dtype=np.float64)


def linearised(value: float, influence: Array, documents: Index) -> Estimate:
    """Estimate from its influence values [n], each scaled so that T = value + mean(influence) to first order."""
    n, error = len(influence), standard_error(influence, documents)
    if error is None:
        return Estimate(value, n)
    half = t_quantile(len(np.unique(documents)) - 1) * error
    return Estimate(value, n, value - half, value + half)


def standard_error(influence: Array, documents: Index) -> float | None:
    """Of the estimate with these influence values [n]; None with fewer than two documents."""
    sums = document_sums(influence / max(1, len(influence)), documents)
    groups = len(sums)
    if groups < 2:
        return None
    return math.sqrt(groups / (groups - 1) * float(np.sum((sums - sums.mean()) ** 2)))


def mean(values: Array, documents: Index) -> Estimate:
    """Mean over tokens."""
    if len(values) == 0:
        return NOTHING
    value = float(values.mean())
    return linearised(value, values - value, documents)


def ratio(numerators: Array, denominators: Array, documents: Index) -> Estimate:
    """sum(numerators) / sum(denominators); `n` is the sum of the denominators, which count what is averaged over."""
    total = float(denominators.sum())
    if total == 0:
        return NOTHING
    value = float(numerators.sum()) / total
    influence = (numerators - value * denominators) * (len(numerators) / total)
    estimate = linearised(value, influence, documents)
    return Estimate(estimate.value, round(total), estimate.low, estimate.high)


def proportion(successes: Array, trials: Array, documents: Index) -> Estimate:
    """Share of successes, bounds within [0, 1]; Wilson's interval where every trial went the same way."""
    estimate = ratio(successes, trials, documents)
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return estimate
    if estimate.value in (0.0, 1.0):
        low, high = wilson(estimate.value * estimate.n, estimate.n)
        return Estimate(estimate.value, estimate.n, low, high)
    return Estimate(estimate.value, estimate.n, max(0.0, estimate.low), min(1.0, estimate.high))


def root_mean_square(values: Array, documents: Index) -> Estimate:
    """sqrt(mean(x^2)), by the mapped interval of the mean square, which cannot go below zero."""
    square = mean(values * values, documents)
    return square.mapped(lambda x: math.sqrt(max(0.0, x)))


def correlation(first: Array, second: Array, documents: Index) -> Estimate:
    """Pearson's r of paired values; influence u v - r (u^2 + v^2) / 2 for standardised u and v."""
    if len(first) == 0 or first.std() == 0 or second.std() == 0:
        return Estimate(None, len(first))
    u = (first - first.mean()) / first.std()
    v = (second - second.mean()) / second.std()
    r = float((u * v).mean())
    estimate = linearised(r, u * v - r * (u * u + v * v) / 2, documents)
    if estimate.low is None or estimate.high is None:
        return estimate
    return Estimate(r, estimate.n, max(-1.0, estimate.low), min(1.0, estimate.high))


def wilson(successes: float, trials: int) -> tuple[float, float]:
    """Wilson's score interval of a proportion."""
    z = NormalDist().inv_cdf(0.5 + CONFIDENCE / 2)
    share = successes / trials
    centre = share + z * z / (2 * trials)
    half = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def quantiles(values: Array, levels: Sequence[float], documents: Index) -> list[Estimate]:
    """Interpolated quantiles (0 = minimum, 1 = maximum) with bounds from the cluster bootstrap."""
    n = len(values)
    if n == 0:
        return [NOTHING for _ in levels]
    points = np.quantile(values, levels)
    if len(np.unique(documents)) < 2:
        return [Estimate(float(point), n) for point in points]
    drawn = _resampled_quantiles(values, np.asarray(levels, dtype=np.float64), documents)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
    return [Estimate(float(p), n, float(a), float(b)) for p, a, b in zip(points, low, high, strict=True)]


def _resampled_quantiles(values: Array, levels: Array, documents: Index) -> Array:
    """Quantiles of every resample [RESAMPLES, levels].

    A resample takes document g w_g times. With the tokens sorted once, the running sum of their weights says where each
    rank of the resample lies, so no resample is ever written out or sorted.
    """
    _, inverse = np.unique(documents, return_inverse=True)
    order = np.argsort(values, kind="stable")
    ordered, owner = values[order], inverse[order]
    groups = int(inverse.max()) + 1
    generator = np.random.default_rng(SEED)
    weights = generator.multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES)  # [R, G]
    drawn = np.empty((RESAMPLES, len(levels)))
    step = max(1, _CELLS // len(values))
    for start in range(0, RESAMPLES, step):
        running = np.cumsum(weights[start : start + step][:, owner], axis=1)  # [r, n]
        for row, counts in enumerate(running, start):
            rank = levels * (counts[-1] - 1)
            below = np.floor(rank)
            left = ordered[np.searchsorted(counts, below, side="right")]
            right = ordered[np.searchsorted(counts, np.minimum(below + 1, counts[-1] - 1), side="right")]
            drawn[row] = left + (rank - below) * (right - left)
    return drawn

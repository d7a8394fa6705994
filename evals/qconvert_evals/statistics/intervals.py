"""Intervals for numbers measured on tokens, where the documents, not the tokens, are the independent draws.

Tokens of one document resemble each other, so an interval that counts tokens as independent is too narrow (by a
factor of three is not rare). An estimate T has an influence value z_i per token, T's first-order change when that token
is weighed more. With G documents and z_g the sum over document g,

    var(T) = G / (G - 1) * sum_g (z_g - mean z)^2                      (the linearisation of survey statistics)

Means, ratios, correlations and functions of them are all of this kind, and a difference between two lanes on the same
tokens is just a mean of differences, so pairing needs no formula of its own. Libraries have this variance for means and
regressions only, not for the influence values of the estimates here; how far the bounds lie is in `spread`.

With fewer than two documents there is no interval: bounds are None, never a guess. A share of exactly 0 or 1 has no
spread between documents; its interval is Wilson's, on documents that count for 1 / ALIKE trials at most. A quantity
counted in full, such as the error of a weight tensor, has no sampling error: `exact` gives it bounds without width.

Left out: model-based intervals (mixed effects), which need assumptions that no reader of a report could check.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from qconvert_evals.statistics.spread import ALPHA, CONFIDENCE, reach, variance

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

# Correlation of two tokens of one document that is assumed where a sample shows none, all trials having gone the same
# way. Rare events in the shipped model's documents (flips of the top token, of a draft, of a set of experts) have 0.004
# at most, whether a draft is accepted at all 0.045.
ALIKE = 0.05


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

    def within(self, lowest: float, highest: float) -> Estimate:
        """The same with its bounds held within a range that the quantity cannot leave."""
        if self.low is None or self.high is None:
            return self
        return Estimate(self.value, self.n, max(lowest, self.low), min(highest, self.high))


NOTHING = Estimate(None, 0)


def exact(value: float, n: int) -> Estimate:
    """A value without sampling error."""
    return Estimate(value, n, value, value, exact=True)


def document_sums(values: Array, documents: Index) -> Array:
    """[n] summed by document -> [G], in order of the document number."""
    _, inverse = np.unique(documents, return_inverse=True)
    return np.asarray(np.bincount(inverse, weights=values), dtype=np.float64)


def linearised(value: float, influence: Array, documents: Index) -> Estimate:
    """Estimate from its influence values [n], each scaled so that T = value + mean(influence) to first order."""
    n = len(influence)
    below, above = reach(document_sums(influence / max(1, n), documents)[:, None])
    if math.isnan(below[0]):
        return Estimate(value, n)
    return Estimate(value, n, value - float(below[0]), value + float(above[0]))


def standard_error(influence: Array, documents: Index) -> float | None:
    """Of the estimate with these influence values [n]; None with fewer than two documents."""
    sums = document_sums(influence / max(1, len(influence)), documents)
    return math.sqrt(variance(sums[:, None])[0]) if len(sums) > 1 else None


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
    """Share of successes, bounds within [0, 1]; `certain` where every trial went the same way."""
    estimate = ratio(successes, trials, documents)
    if estimate.value is None or estimate.low is None:
        return estimate
    if estimate.value in (0.0, 1.0):
        return certain(estimate.value, estimate.n, documents)
    return estimate.within(0.0, 1.0)


def difference(own: Array, base: Array, documents: Index) -> Estimate:
    """Mean of own - base, both shares or counts of successes within [0, 1] for each of n pairs.

    Where no pair differs the mean has no spread. With 95% confidence the share of pairs that differ is then at most
    1 - 0.05^(1/n), about 3 / n (rule of three), and no difference of two shares is larger than that.
    """
    estimate = mean(own - base, documents)
    if estimate.value is None or estimate.low is None or (own != base).any():
        return estimate
    share = none_seen(estimate.n, documents)
    return Estimate(0.0, estimate.n, -share, share)


def none_seen(n: int, documents: Index) -> float:
    """Upper 95% bound of the share of an event that none of n trials showed."""
    return 1.0 - float(ALPHA ** (1 / effective_trials(n, documents)))


def certain(share: float, n: int, documents: Index) -> Estimate:
    """Interval of a share of exactly 0 or 1 over n trials; none with fewer than two documents.

    What Wilson's comes to there, z^2 / (n + z^2) wide, written out, since every comparison needs it and statsmodels
    takes two seconds to import.
    """
    if len(np.unique(documents)) < 2:
        return Estimate(share, n)
    square = float(ndtri(1 - ALPHA / 2)) ** 2
    width = square / (effective_trials(n, documents) + square)
    return Estimate(share, n, 0.0, width) if share == 0 else Estimate(share, n, 1 - width, 1.0)


def effective_trials(n: int, documents: Index) -> float:
    """n trials in G documents are worth n / (1 + (n/G - 1) ALIKE) independent ones (Kish's design effect): all of them
    where every document is one trial, and never more than G / ALIKE."""
    per_document = max(1.0, n / len(np.unique(documents)))
    return n / (1 + (per_document - 1) * ALIKE)


def root_mean_square(values: Array, documents: Index) -> Estimate:
    """sqrt(mean(x^2)), by the mapped interval of the mean square, which cannot go below zero."""
    square = mean(values * values, documents)
    return square.mapped(lambda x: math.sqrt(max(0.0, x)))


def correlation(first: Array, second: Array, documents: Index) -> Estimate:
    """Pearson's r of paired values, by its influence u v - r (u^2 + v^2) / 2 for standardised u and v.

    Bounds are made for artanh r (Fisher's z), which has little skew, and mapped back.
    """
    if len(first) == 0 or first.std() == 0 or second.std() == 0:
        return Estimate(None, len(first))
    u = (first - first.mean()) / first.std()
    v = (second - second.mean()) / second.std()
    r = min(1.0, max(-1.0, float((u * v).mean())))
    if abs(r) == 1.0:
        return Estimate(r, len(first), r, r)
    influence = (u * v - r * (u * u + v * v) / 2) / (1 - r * r)
    found = linearised(math.atanh(r), influence, documents).mapped(math.tanh)
    return Estimate(r, found.n, found.low, found.high)


def wilson(successes: float, trials: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion of independent trials."""
    from statsmodels.stats.proportion import proportion_confint  # here, because it brings pandas along

    low, high = proportion_confint(successes, trials, alpha=1 - CONFIDENCE, method="wilson")
    return float(low), float(high)

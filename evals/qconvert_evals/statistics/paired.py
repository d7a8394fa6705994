"""Two lanes on the same documents: is there a difference, is there none to speak of, and what could have been seen.

With d_i the difference of document i and clusters of documents that hang together:

    McNemar      right/wrong scores: of the discordant pairs, lost ~ Binomial(lost + gained, 1/2) without a difference;
                 p = P(a split at least as uneven), two-sided, exact. The pairs that agree say nothing.
    t            means: mean d / its standard error over clusters against Student's t with clusters - 1 degrees
    TOST         two one-sided t tests against -margin and +margin; both must reject before "equal" is a finding. The
                 first of them alone is "no worse". Failing to find a difference is not evidence of none.
    Holm         m tests at once: the k-th smallest p (k = 1..m) times m - k + 1, made monotone, at most 1
    detectable   the difference that a one-sided test at 5% finds 80% of the time: (1.645 + 0.842) * standard error
    bootstrap    clusters drawn with replacement, percentile bounds of the mean; where clusters are few, or skewed, it
                 and the t interval part, which is worth knowing

Left out: mid-p and chi-square forms of McNemar (the exact one costs nothing), corrections other than Holm's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from qconvert_evals.statistics.intervals import (
    CONFIDENCE,
    SEED,
    Array,
    Estimate,
    Index,
    document_sums,
    standard_error,
    t_within,
)

ALPHA, POWER = 0.05, 0.8
BOOTSTRAP = 10_000


@dataclass(frozen=True)
class Equivalence:
    """P values against a margin: of "worse by the margin or more", and of "different by the margin or more"."""

    margin: float
    no_worse: float
    equal: float


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided exact p of `lost` against `gained` discordant pairs; 1 where there are none."""
    n, few = lost + gained, min(lost, gained)
    if 2 * few == n:
        return 1.0
    # Binomial terms by their logarithms: integers of n = 10,000 would have 3,000 digits.
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(few + 1)]
    return min(1.0, 2 * math.fsum(math.exp(one - n * math.log(2)) for one in logs))


def t_test(differences: Array, clusters: Index) -> float | None:
    """Two-sided p of "the mean difference is zero", 1 where all are; None with fewer than two clusters."""
    found = _mean_and_error(differences, clusters)
    if found is None:
        return None
    mean, error, df = found
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return _beyond(abs(mean) / error, df)


def equivalence(
    differences: Array, clusters: Index, margin: float, higher_is_better: bool = True
) -> Equivalence | None:
    """TOST of the mean difference (candidate - base) against a margin; None with fewer than two clusters."""
    if margin <= 0:
        raise ValueError(f"a margin of {margin} leaves no room for equality")
    found = _mean_and_error(differences, clusters)
    if found is None:
        return None
    mean, error, df = found
    good = mean if higher_is_better else -mean
    no_worse, no_better = (_one_sided(distance, error, df) for distance in (good + margin, margin - good))
    return Equivalence(margin, no_worse, max(no_worse, no_better))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p values in the order given: reject those at or below alpha, and at most alpha of families err."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda one: p_values[one])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = highest
    return adjusted


def smallest_detectable(error: float, alpha: float = ALPHA, power: float = POWER) -> float:
    """From the standard error of the difference; one-sided."""
    normal = NormalDist()
    return (normal.inv_cdf(1 - alpha) + normal.inv_cdf(power)) * error


def bootstrap_mean(values: Array, clusters: Index, resamples: int = BOOTSTRAP) -> Estimate:
    """Mean over documents with percentile bounds over clusters; seeded. None without bounds below two clusters."""
    n = len(values)
    if n == 0:
        return Estimate(None, 0)
    mean = float(values.mean())
    sums, sizes = document_sums(values, clusters), document_sums(np.ones(n), clusters)
    groups = len(sums)
    if groups < 2:
        return Estimate(mean, n)
    weights = np.random.default_rng(SEED).multinomial(groups, np.full(groups, 1 / groups), size=resamples)  # [R, G]
    drawn = (weights @ sums) / (weights @ sizes)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(mean, n, float(low), float(high))


def _mean_and_error(differences: Array, clusters: Index) -> tuple[float, float, int] | None:
    """Mean, its standard error over clusters, degrees of freedom."""
    if len(differences) == 0:
        return None
    mean = float(differences.mean())
    error = standard_error(differences - mean, clusters)
    return None if error is None else (mean, error, len(np.unique(clusters)) - 1)


def _beyond(t: float, df: int) -> float:
    """P(|T| > t)."""
    if df > 1000:  # as `t_quantile` does
        return 2 * (1 - NormalDist().cdf(t))
    return max(0.0, 1 - t_within(t, df))


def _one_sided(distance: float, error: float, df: int) -> float:
    """P(T > distance / error)."""
    if error == 0:
        return 0.0 if distance > 0 else 1.0
    half = _beyond(abs(distance) / error, df) / 2
    return half if distance > 0 else 1 - half

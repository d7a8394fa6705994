"""Two lanes on the same documents: is there a difference, is there none to speak of, and what could have been seen.

With d_i the difference of document i and clusters of documents that hang together:

    McNemar      right/wrong scores: of the discordant pairs, lost ~ Binomial(lost + gained, 1/2) without a difference;
                 p = P(a split at least as uneven), two-sided, exact. The pairs that agree say nothing. Pooled over
                 tasks: the same of the sums of discordant pairs
    t            means: mean d / its standard error over clusters against Student's t with clusters - 1 degrees
    TOST         two one-sided t tests against -margin and +margin; both must reject before "equal" is a finding. The
                 first of them alone is "no worse". Failing to find a difference is not evidence of none.
    Holm         m tests at once: the k-th smallest p (k = 1..m) times m - k + 1, made monotone, at most 1
    detectable   the difference that a one-sided test at 5% finds 80% of the time: (1.645 + 0.842) * standard error

Left out: mid-p and chi-square forms of McNemar (the exact one costs nothing), corrections other than Holm's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtr

from qconvert_evals.statistics.intervals import Array, Index, standard_error

POWER = 0.8
LEVEL = 0.05


@dataclass(frozen=True)
class Equivalence:
    """P values against a margin: of "worse by the margin or more", and of "different by the margin or more"."""

    margin: float
    no_worse: float
    equal: float


def mcnemar(lost: int, gained: int) -> float:
    """Two-sided exact p of `lost` against `gained` discordant pairs; 1 where there are none."""
    from statsmodels.stats.contingency_tables import mcnemar as exact  # here, because it brings pandas along

    return float(exact([[0, lost], [gained, 0]], exact=True).pvalue)


def t_test(differences: Array, clusters: Index) -> float | None:
    """Two-sided p of "the mean difference is zero", 1 where all are; None with fewer than two clusters."""
    found = _mean_and_error(differences, clusters)
    if found is None:
        return None
    mean, error, df = found
    if error == 0:
        return 1.0 if mean == 0 else 0.0
    return 2 * _one_sided(abs(mean), error, df)


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
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests  # here, because it brings pandas along

    return [float(one) for one in multipletests(p_values, method="holm")[1]]


def smallest_detectable(error: float, alpha: float = LEVEL, power: float = POWER) -> float:
    """From the standard error of the difference; one-sided."""
    return float(ndtri(1 - alpha) + ndtri(power)) * error


def _mean_and_error(differences: Array, clusters: Index) -> tuple[float, float, int] | None:
    """Mean, its standard error over clusters, degrees of freedom."""
    if len(differences) == 0:
        return None
    mean = float(differences.mean())
    error = standard_error(differences - mean, clusters)
    return None if error is None else (mean, error, len(np.unique(clusters)) - 1)


def _one_sided(distance: float, error: float, df: int) -> float:
    """P(T > distance / error)."""
    if error == 0:
        return 0.0 if distance > 0 else 1.0
    return float(stdtr(df, -distance / error))

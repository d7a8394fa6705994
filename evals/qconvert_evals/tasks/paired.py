"""Two lanes over the same documents: difference, flips, recovery, and what could have been seen.

Everything is of pairs (a, b) = (base, candidate) of one document. McNemar's test looks at the documents that flipped:
if nothing changed but luck, each flip goes either way like a coin. The smallest detectable difference follows from the
share of documents that flipped, or from the spread of the differences.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qconvert_evals import statistics
from qconvert_evals.statistics import NOTHING, Array, Estimate
from qconvert_evals.tasks.measure import Values

ALPHA, POWER = 0.05, 0.8


@dataclass(frozen=True)
class Pair:
    """What one metric says about one candidate."""

    difference: Estimate
    recovery: Estimate
    p: float | None
    test: str
    lost: list[int]  # places of documents that were right and are wrong; empty where a score is not right or wrong
    gained: list[int]
    mde: float | None

    @property
    def flips(self) -> bool:
        """Whether scores are right or wrong, so that there is something to flip."""
        return self.test == MCNEMAR


MCNEMAR, BOOTSTRAP = "McNemar, exact", "paired bootstrap"


def pair(base: Values, candidate: Values) -> Pair:
    """Both over the same documents in the same order."""
    n = len(base.sums)
    if base.kind == candidate.kind == "proportion":
        lost = np.flatnonzero((base.sums == 1) & (candidate.sums == 0)).tolist()
        gained = np.flatnonzero((base.sums == 0) & (candidate.sums == 1)).tolist()
        mde = statistics.mde_paired_binary(n, (len(lost) + len(gained)) / n, ALPHA, POWER)
        # Documents of one cluster flip together: the coin of McNemar's test is then thrown less often than it counts.
        p = None if base.clustered else statistics.mcnemar_exact(len(lost), len(gained))
        return Pair(_difference(base, candidate), _recovery(base, candidate), p, MCNEMAR, lost, gained, mde)
    deviations = candidate.influence - base.influence
    mde = statistics.mde_paired_mean(n, float(deviations.std(ddof=1)), ALPHA, POWER) if n > 1 else None
    return Pair(_difference(base, candidate), _recovery(base, candidate), None, BOOTSTRAP, [], [], mde)


def _difference(base: Values, candidate: Values) -> Estimate:
    """Candidate - base, interval by the paired bootstrap over documents (over clusters where there are any)."""
    value = candidate.score - base.score
    deviations = value + candidate.influence - base.influence
    return statistics.paired_bootstrap(deviations, clusters=base.clusters)


def _recovery(base: Values, candidate: Values) -> Estimate:
    """Candidate / base, by the same linearisation."""
    ours, theirs = base.score, candidate.score
    if not (math.isfinite(ours) and ours > 0):
        return NOTHING
    share = theirs / ours
    return statistics.linearised(share, (candidate.influence - share * base.influence) / ours, base.clusters)

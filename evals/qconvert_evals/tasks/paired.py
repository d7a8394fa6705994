"""Two lanes over the same documents: difference, flips and recovery.

Everything is of pairs (a, b) = (base, candidate) of one document, so the difference's interval is that of a mean of
differences, clustered where documents hang together.

Left out as yet: McNemar's test, Holm's correction and the smallest detectable difference, until `statistics` has them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qconvert_evals import statistics
from qconvert_evals.statistics import NOTHING, Estimate
from qconvert_evals.tasks.measure import Values


@dataclass(frozen=True)
class Pair:
    """What one metric says about one candidate."""

    difference: Estimate
    recovery: Estimate
    flips: bool  # whether scores are right or wrong, so that there is something to flip
    lost: list[int]  # places of documents that were right and are wrong; empty where a score is not right or wrong
    gained: list[int]


def pair(base: Values, candidate: Values) -> Pair:
    """Both over the same documents in the same order."""
    difference, recovery = _difference(base, candidate), _recovery(base, candidate)
    if not base.kind == candidate.kind == "proportion":
        return Pair(difference, recovery, False, [], [])
    lost = np.flatnonzero((base.sums == 1) & (candidate.sums == 0)).tolist()
    gained = np.flatnonzero((base.sums == 0) & (candidate.sums == 1)).tolist()
    return Pair(difference, recovery, True, lost, gained)


def _difference(base: Values, candidate: Values) -> Estimate:
    """Candidate - base, over documents (over clusters where there are any)."""
    value = candidate.score - base.score
    deviations = value + candidate.influence - base.influence
    return statistics.mean(deviations, base.clusters)


def _recovery(base: Values, candidate: Values) -> Estimate:
    """Candidate / base, by the same linearisation."""
    ours, theirs = base.score, candidate.score
    if not (math.isfinite(ours) and ours > 0):
        return NOTHING
    share = theirs / ours
    return statistics.linearised(share, (candidate.influence - share * base.influence) / ours, base.clusters)

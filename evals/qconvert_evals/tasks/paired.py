"""Two lanes over the same documents: difference, flips and recovery, and what may be concluded from them.

Everything is of pairs (a, b) = (base, candidate) of one document, so the difference's interval is that of a mean of
differences, clustered where documents hang together.

    p          of "no difference": McNemar's exact test where scores are right or wrong and documents independent, else
               the t test over clusters; corrected over the tasks of a lane by whoever has them all
    no worse   p of "worse by MARGIN or more" (one half of TOST); corrected like p, and below 5% the lane is certified
               not to have lost that
    detectable the drop found four times in five. Where no document changed, the share of flips is taken
               to be Wilson's upper bound: a test that saw no flip is not infinitely sharp. For the same reason "no
               worse" is then (1 - margin)^n, the chance that n independent documents show nothing of such a loss.
    pooled     all tasks of a lane together: of the discordant pairs of all, lost ~ Binomial(lost + gained, 1/2) if no
               task differs, exactly, however many documents each has. It finds a small loss that all tasks share and
               that none shows by itself; losses in one task and gains in another cancel, which Holm's test sees

Left out: claims about metrics without a number per document, which cannot be paired.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qconvert_evals import statistics
from qconvert_evals.statistics import NOTHING, Array, Equivalence, Estimate
from qconvert_evals.tasks.measure import Values

MARGIN = 0.01  # of a score between 0 and 1; of others, of the base's score


@dataclass(frozen=True)
class Pair:
    """What one metric says about one candidate."""

    difference: Estimate
    recovery: Estimate
    p_value: float | None
    no_worse: float | None
    margin: float
    detectable: float | None
    flips: bool  # whether scores are right or wrong, so that there is something to flip
    lost: list[int]  # places of documents that were right and are wrong; empty where a score is not right or wrong
    gained: list[int]


def pair(base: Values, candidate: Values, higher_is_better: bool = True) -> Pair:
    """Both over the same documents in the same order."""
    deviations = _deviations(base, candidate)
    flips = base.kind == candidate.kind == "proportion"
    lost, gained = _flipped(base, candidate) if flips else ([], [])
    same = bool((base.sums == candidate.sums).all())
    margin = MARGIN if flips else MARGIN * abs(base.score)
    p_value = statistics.t_test(deviations, base.clusters)
    if flips and not base.clustered:
        p_value = statistics.mcnemar(len(lost), len(gained))
    claim = statistics.equivalence(deviations, base.clusters, margin, higher_is_better) if margin else None
    return Pair(
        difference=_difference(base, candidate, deviations),
        recovery=_recovery(base, candidate),
        p_value=p_value,
        no_worse=_no_worse(base, claim, margin, same),
        margin=margin,
        detectable=_detectable(base, deviations, flips and same),
        flips=flips,
        lost=lost,
        gained=gained,
    )


def _flipped(base: Values, candidate: Values) -> tuple[list[int], list[int]]:
    lost = np.flatnonzero((base.sums == 1) & (candidate.sums == 0)).tolist()
    gained = np.flatnonzero((base.sums == 0) & (candidate.sums == 1)).tolist()
    return lost, gained


def _deviations(base: Values, candidate: Values) -> Array:
    """[n]: candidate - base by document, to first order where the score is no mean."""
    found: Array = (candidate.score - base.score) + candidate.influence - base.influence
    return found


def _difference(base: Values, candidate: Values, deviations: Array) -> Estimate:
    within = all(one.kind != "ratio" and ((one.sums >= 0) & (one.sums <= 1)).all() for one in (base, candidate))
    if within:  # scores of a document between 0 and 1, so that agreement everywhere has an interval as well
        return statistics.difference(candidate.sums, base.sums, base.clusters)
    return statistics.mean(deviations, base.clusters)


def _no_worse(base: Values, claim: Equivalence | None, margin: float, same: bool) -> float | None:
    if claim is None:
        return None
    return float((1 - margin) ** len(np.unique(base.clusters))) if same else claim.no_worse


def _detectable(base: Values, deviations: Array, none_flipped: bool) -> float | None:
    error = statistics.standard_error(deviations - deviations.mean(), base.clusters)
    if error is None:
        return None
    if none_flipped:
        n = statistics.effective_trials(len(deviations), base.clusters)
        error = math.sqrt(statistics.wilson(0, n)[1] / n)
    return statistics.smallest_detectable(error)


def _recovery(base: Values, candidate: Values) -> Estimate:
    """Candidate / base, by the same linearisation."""
    ours, theirs = base.score, candidate.score
    if not (math.isfinite(ours) and ours > 0):
        return NOTHING
    share = theirs / ours
    found = statistics.linearised(share, (candidate.influence - share * base.influence) / ours, base.clusters)
    if found.low == found.high == 1.0 and base.kind == "proportion":
        width = statistics.none_seen(found.n, base.clusters) / ours
        return Estimate(1.0, found.n, 1 - width, 1 + width)
    return found


def pooled(rows: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The exact test over the tasks of one lane, from the rows of `figures["tasks"]`; None with fewer than two tasks.

    One metric a task, the first with flips, since two metrics of the same answers are no two observations. Tasks whose
    documents hang together are left out by name: their pairs are not independent.
    """
    first: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["asked"] and row["lost"] is not None:
            first.setdefault(row["task"], row)
    taken = {task: row for task, row in first.items() if row["clustered_by"] is None}
    if len(taken) < 2:
        return None
    lost, gained = (sum(row[word] for row in taken.values()) for word in ("lost", "gained"))
    return {
        "tasks": list(taken),
        "clustered": [task for task in first if task not in taken],
        "n": sum(row["n"] for row in taken.values()),
        "lost": lost,
        "gained": gained,
        "p_value": statistics.mcnemar(lost, gained),
    }

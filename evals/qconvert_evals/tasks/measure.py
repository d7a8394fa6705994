"""From values by document to scores.

    score         a proportion with Wilson's interval, a mean with one over documents, or a text-level ratio
                  f(sum of losses / sum of counts) for perplexities and bits per byte

Documents of one cluster (see `lane_run`) are drawn together. A metric that lm-eval makes of all documents at once (F1,
BLEU, a median) has no value per document: its score is lm-eval's, without an interval, and there is nothing to pair.

Every score is compared with lm-eval's own aggregate; where they differ, the aggregate is not the mean, and lm-eval's is
taken, without an interval as well.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qconvert_evals import statistics
from qconvert_evals.statistics import Array, Estimate, Index
from qconvert_evals.tasks.series import Key, Series


@dataclass(frozen=True)
class Shape:
    """An increasing function with its derivative."""

    value: Callable[[float], float]
    slope: Callable[[float], float]


EXP = Shape(math.exp, math.exp)
BITS = Shape(lambda nats: nats / math.log(2), lambda nats: 1 / math.log(2))
SAME = Shape(lambda x: x, lambda x: 1.0)
# Metrics over (log-likelihood, count) or log-likelihoods: what is made of the mean loss in nats.
OF_LOSS = {"word_perplexity": EXP, "byte_perplexity": EXP, "perplexity": EXP, "bits_per_byte": BITS}
TOLERANCE = 1e-9  # both are sums of the same few thousand doubles in another order


@dataclass(frozen=True)
class Values:
    """One series as arrays in the order of the documents: losses or scores, what they are divided by, clusters."""

    kind: str  # "proportion", "mean" or "ratio"
    sums: Array
    counts: Array
    clusters: Index
    clustered: bool
    shape: Shape

    @property
    def ratio(self) -> float:
        """Sum over sum."""
        return float(self.sums.sum() / self.counts.sum())

    @property
    def score(self) -> float:
        """What is made of it."""
        return self.shape.value(self.ratio)

    @property
    def influence(self) -> Array:
        """[n]: the score's first-order change when one document is weighed more, times n."""
        error = self.sums - self.ratio * self.counts
        influence: Array = self.shape.slope(self.ratio) * error * (len(error) / float(self.counts.sum()))
        return influence

    def estimate(self) -> Estimate:
        """The score with its interval."""
        n = len(self.sums)
        if self.kind == "proportion" and not self.clustered:
            return Estimate(self.ratio, n, *statistics.wilson(self.sums.sum(), n))
        if self.kind == "proportion":
            return statistics.proportion(self.sums, self.counts, self.clusters)
        one = statistics.ratio(self.sums, self.counts, self.clusters).mapped(self.shape.value)
        return Estimate(one.value, n, one.low, one.high)


def values_of(key: Key, series: Series) -> Values | None:
    """None where the metric has no number per document, or lm-eval's aggregate is something else than their mean."""
    documents = sorted(series.values)
    raw = [series.values[document] for document in documents]
    found = _arrays(key.metric, raw)
    if found is None:
        return None
    kind, sums, counts, shape = found
    labels = [series.clusters.get(document, f"document {document}") for document in documents]
    clusters = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    values = Values(kind, sums, counts, clusters, bool(series.clusters), shape)
    if series.aggregate is None:
        return None
    return values if math.isclose(values.score, series.aggregate, rel_tol=TOLERANCE, abs_tol=TOLERANCE) else None


def _arrays(metric: str, raw: Sequence[Any]) -> tuple[str, Array, Array, Shape] | None:
    shape = OF_LOSS.get(metric)
    if all(isinstance(one, (int, float, np.number)) for one in raw):
        numbers = np.asarray(raw, dtype=np.float64)
        if not np.isfinite(numbers).all():
            return None
        if shape is not None:
            return "ratio", -numbers, np.ones(len(raw)), shape
        kind = "proportion" if np.isin(numbers, (0.0, 1.0)).all() else "mean"
        return kind, numbers, np.ones(len(raw)), SAME
    if shape is None or not all(isinstance(one, (tuple, list)) and len(one) == 2 for one in raw):
        return None
    pairs = np.asarray(raw, dtype=np.float64)
    return ("ratio", -pairs[:, 0], pairs[:, 1], shape) if np.isfinite(pairs).all() else None


def merged(parts: Sequence[Series], aggregate: float | None) -> Series:
    """The series of a group: the documents of all its tasks together. Of one task alone, that task's own."""
    if len(parts) == 1:
        return parts[0]
    whole = Series(aggregate=aggregate, higher_is_better=parts[0].higher_is_better)
    for part in parts:
        numbers = {document: len(whole.values) + place for place, document in enumerate(sorted(part.values))}
        whole.values |= {numbers[document]: value for document, value in part.values.items()}
        whole.identities |= {numbers[document]: value for document, value in part.identities.items()}
        whole.clusters |= {numbers[document]: value for document, value in part.clusters.items()}
    return whole


def score(values: Values | None, series: Series) -> Estimate:
    """The score of a lane; lm-eval's aggregate where there are no values by document."""
    return values.estimate() if values is not None else Estimate(series.aggregate, len(series.values))

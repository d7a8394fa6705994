"""Quantiles of tokens in documents, with Woodruff's interval: a share is easy to bound, a quantile is where it leads.

At the estimate x of the quantile of level p, the share of tokens below x is p by construction, and as a share it has an
influence value by token and an interval p - a .. p + b over documents (`spread`). The interval of the quantile reaches
from the quantile of level p - a to that of level p + b. A bootstrap of the quantile itself covers 88 to 90% at the 99th
percentile and 58% at the 99.9th, since no resample can hold a value that the sample does not.

No interval is given

- where fewer than TAIL tokens are expected beyond the quantile (under 1,000 tokens for the 99th percentile, under
  10,000 for the 99.9th), since their number hardly says anything;
- with fewer than FEWEST documents, or where p - a or p + b leaves (0, 1): the bound lies beyond the data;
- for maximum and minimum, which are of the sample and not of the text.

Left out: extreme value models, which go beyond the data on an assumption about the tail.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qconvert_evals.statistics.intervals import NOTHING, Array, Estimate, Index
from qconvert_evals.statistics.spread import FEWEST, reach

TAIL = 10


def quantiles(values: Array, levels: Sequence[float], documents: Index) -> list[Estimate]:
    """Interpolated quantiles (0 = minimum, 1 = maximum) with bounds where the data can give them."""
    n = len(values)
    if n == 0:
        return [NOTHING for _ in levels]
    _, owners = np.unique(documents, return_inverse=True)
    order = np.argsort(values, kind="stable")
    ordered, owners = values[order], owners[order]
    ranks = np.arange(n)
    points = np.quantile(ordered, levels)
    bounded = [place for place, level in enumerate(levels) if n * min(level, 1 - level) >= TAIL * (1 - 1e-9)]
    found = [Estimate(float(point), n) for point in points]
    if int(owners.max()) + 1 < FEWEST or not bounded:
        return found
    below, above = reach(_influence(ordered, owners, np.asarray(levels)[bounded]))
    for place, a, b in zip(bounded, below, above, strict=True):
        low, high = levels[place] - a, levels[place] + b
        if low > 0 and high < 1:
            ends = np.interp(np.asarray([low, high]) * (n - 1), ranks, ordered)
            found[place] = Estimate(float(points[place]), n, float(ends[0]), float(ends[1]))
    return found


def _influence(ordered: Array, owners: Index, levels: Array) -> Array:
    """Of each document on the share of tokens below each quantile [G, levels].

    Among equal values at the quantile, each document has the same part below it, or the order in which equals happen
    to stand would look like a difference between documents.
    """
    n, groups, count = len(ordered), int(owners.max()) + 1, len(levels)
    ranks = np.ceil(levels * n).astype(np.int64)  # tokens at or below the quantile
    at = ordered[ranks - 1]
    first, last = np.searchsorted(ordered, at, side="left"), np.searchsorted(ordered, at, side="right")
    edges = np.unique(np.concatenate([first, last]))
    stretch = np.searchsorted(edges, np.arange(n), side="right")
    cells = np.bincount(stretch * groups + owners, minlength=(len(edges) + 1) * groups)
    before = np.cumsum(cells.reshape(-1, groups)[: len(edges)], axis=0)  # [edges, G]: tokens of g before each edge
    lower, upper = before[np.searchsorted(edges, first)], before[np.searchsorted(edges, last)]  # [levels, G]
    part = ((ranks - first) / (last - first)).reshape(count, 1)
    sizes = np.bincount(owners, minlength=groups)
    influence: Array = (lower + part * (upper - lower) - (ranks / n).reshape(count, 1) * sizes) / n
    return influence.T

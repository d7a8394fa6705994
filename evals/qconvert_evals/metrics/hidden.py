"""Error of the hidden states behind each layer, relative to the base: sqrt(sum |c - b|^2 / sum |b|^2).

In feed "local" it is what the layer adds to an input without error; in feed "free" it is what has piled up so far.
The first layer where it jumps is the layer to look at. Kept are two sums per document, layer and feed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from qconvert_evals import statistics
from qconvert_evals.metrics.found import Found
from qconvert_evals.statistics import Array


@dataclass
class HiddenState:
    """(layer, feed) -> sums by document [D, 2]: of |c - b|^2 and of |b|^2."""

    lane: str
    domains: Sequence[str]
    layers: dict[tuple[str, str], Array] = field(default_factory=dict)


def update(state: HiddenState, layer: str, feed: str, base: Tensor, candidate: Tensor, documents: Tensor) -> None:
    """Add n tokens' hidden states [n, H]; documents [n] are document numbers."""
    count = len(state.domains)
    before = base.float()
    squares = torch.stack(((candidate.float() - before).square().sum(-1), before.square().sum(-1)), -1)  # [n, 2]
    # On the CPU: a GPU would add in another order every time.
    total = torch.zeros(count, 2, dtype=torch.float64).index_add_(0, documents.cpu(), squares.double().cpu())
    state.layers.setdefault((layer, feed), np.zeros((count, 2)))
    state.layers[layer, feed] += total.numpy()


def result(state: HiddenState) -> Found:
    """One measurement per layer and feed; `n` counts documents."""
    found = Found(state.lane)
    for (layer, feed), sums in state.layers.items():
        rows = np.flatnonzero(sums[:, 1])
        squared = statistics.ratio(sums[rows, 0], sums[rows, 1], rows)
        estimate = squared.mapped(lambda x: math.sqrt(x) if x > 0 else 0.0)
        named = statistics.Estimate(estimate.value, len(rows), estimate.low, estimate.high)
        found.add("hidden.relative_error", f"layer={layer},feed={feed}", "ratio", named, "no tokens")
    return found

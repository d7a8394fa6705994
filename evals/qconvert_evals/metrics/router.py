"""Agreement of the routers of two lanes, per layer and in two feeds.

In feed "local" the candidate's layer gets the hidden states that the base lane has in front of that layer, so that a
disagreement is the layer's own; in feed "free" it gets its own, so that disagreements of all layers before add up.
With A and B the sets of k experts chosen by base and candidate for one token and w the base's routing weights:

    set_match      share of tokens with A = B              topk_overlap   mean |A and B| / k
    top1_match     same expert of largest weight           jaccard        mean |A and B| / |A or B|
    kl             sum_e p(e) ln(p(e) / q(e)), softmax over all experts
    shared_weight  sum of w over A and B / sum of w        (weight of experts that the candidate also runs)
    margin_flipped, margin_kept   base's logit of rank k minus that of rank k+1, mean over tokens with A != B and A = B:
                   sets that change only where the margin is tiny change for little
    tie_rate       share of tokens whose logits of rank k and k+1 are equal, so that nothing but the number decides
    load_distance  half the sum over experts of |load of base - load of candidate|, loads as shares of all choices

The tie rate is each lane's own, the base's included. All but the last are ratios of sums over tokens, and only these
sums are kept, by document; and over all layers together also by how much text came before ("at=128-255,feed=local").
The load distance is linear in the loads once the sign of each expert's difference is known, so it gets the same
interval.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qconvert_evals import statistics
from qconvert_evals.metrics.found import Found, by_domain, join, stretch_name, stretch_of
from qconvert_evals.statistics import Array, Estimate

# Measurement -> (numerator, denominator, unit); columns of `LayerSums.sums`.
RATIOS = {
    "set_match": ("kept", "tokens", "fraction"),
    "topk_overlap": ("overlap", "tokens", "fraction"),
    "jaccard": ("jaccard", "tokens", "fraction"),
    "top1_match": ("top1", "tokens", "fraction"),
    "kl": ("kl", "tokens", "nats"),
    "shared_weight": ("shared", "weight", "fraction"),
    "margin_flipped": ("margin_flipped", "flipped", "logits"),
    "margin_kept": ("margin_kept", "kept", "logits"),
    "tie_rate": ("tied", "tokens", "fraction"),
}
BASE_RATIOS = {"tie_rate": ("base_tied", "tokens", "fraction")}
COLUMNS = (
    "tokens", "kept", "flipped", "overlap", "jaccard", "top1", "kl", "shared", "weight", "margin_flipped",
    "margin_kept", "tied", "base_tied",
)  # fmt: skip
WHY_EMPTY = {"margin_flipped": "no token changed its set of experts", "margin_kept": "every token changed its set"}


class Routes(NamedTuple):
    """Router decisions of n tokens: logits [n, E], experts [n, k] by falling weight, weights [n, k]."""

    logits: Tensor
    experts: Tensor
    weights: Tensor


@dataclass
class LayerSums:
    """Sums by document: one row per document, the columns of COLUMNS, and how often each expert was chosen."""

    sums: Array  # [D, columns]
    base_load: Array  # [D, E]
    load: Array  # [D, E]


@dataclass
class RouterState:
    """Sums for every (layer, feed); `domains` names the domain of each document."""

    lane: str
    domains: Sequence[str]
    layers: dict[tuple[str, str], LayerSums] = field(default_factory=dict)
    stretches: dict[tuple[str, int], Array] = field(default_factory=dict)  # (feed, stretch) -> [D, columns]


def update(
    state: RouterState,
    layer: str,
    feed: str,
    base: Routes,
    candidate: Routes,
    documents: Tensor,
    positions: Tensor | None = None,
) -> None:
    """Add n tokens of one layer and feed; documents [n] are document numbers, positions [n] those in the sequence."""
    experts, count = base.logits.shape[-1], len(state.domains)
    if (layer, feed) not in state.layers:
        empty = np.zeros((count, experts))
        state.layers[layer, feed] = LayerSums(np.zeros((count, len(COLUMNS))), empty, empty.copy())
    sums = state.layers[layer, feed]
    columns = _columns(base, candidate)
    sums.sums += _by_document(columns, documents, count)
    if positions is not None:
        _add_stretches(state, feed, columns, documents.cpu(), positions.cpu())
    sums.base_load += _load(base.experts, documents, count, experts)
    sums.load += _load(candidate.experts, documents, count, experts)


def _columns(base: Routes, candidate: Routes) -> Tensor:
    """The values that are summed, float64 [n, columns]."""
    k = base.experts.shape[-1]
    shared = (base.experts[:, :, None] == candidate.experts[:, None, :]).any(-1)  # [n, k]: is the base's expert in B
    both = shared.sum(-1).double()
    kept = (both == k).double()
    p, q = (torch.log_softmax(one.logits.double(), -1) for one in (base, candidate))
    margin, own_margin = (_margin(one.logits.double(), k) for one in (base, candidate))
    choice = k < base.logits.shape[-1]
    weights = base.weights.double()
    values = {
        "tokens": torch.ones_like(both),
        "kept": kept,
        "flipped": 1 - kept,
        "overlap": both / k,
        "jaccard": both / (2 * k - both),
        "top1": (base.experts[:, 0] == candidate.experts[:, 0]).double(),
        "kl": (p.exp() * (p - q)).sum(-1),
        "shared": (weights * shared).sum(-1),
        "weight": weights.sum(-1),
        "margin_flipped": margin * (1 - kept),
        "margin_kept": margin * kept,
        "tied": ((own_margin == 0) & choice).double(),
        "base_tied": ((margin == 0) & choice).double(),
    }
    return torch.stack([values[name] for name in COLUMNS], dim=-1)


def _margin(logits: Tensor, k: int) -> Tensor:
    """Gap [n] between the logits [n, E] of rank k and k+1; 0 where every expert is chosen anyway."""
    if k >= logits.shape[-1]:
        return torch.zeros(len(logits), dtype=logits.dtype, device=logits.device)
    top = logits.topk(k + 1).values
    return top[:, k - 1] - top[:, k]


def _add_stretches(state: RouterState, feed: str, columns: Tensor, documents: Tensor, positions: Tensor) -> None:
    stretch = torch.from_numpy(stretch_of(positions.numpy()))
    for number in sorted(set(stretch.tolist())):
        mask = stretch == number
        part = _by_document(columns.cpu()[mask], documents[mask], len(state.domains))
        state.stretches[feed, number] = state.stretches.get((feed, number), np.zeros_like(part)) + part


def _by_document(values: Tensor, documents: Tensor, count: int) -> Array:
    """[n, C] summed by document -> [count, C]; on the CPU, since a GPU would add in another order every time."""
    total = torch.zeros(count, values.shape[-1], dtype=torch.float64)
    summed: Array = total.index_add_(0, documents.cpu(), values.cpu()).numpy()
    return summed


def _load(chosen: Tensor, documents: Tensor, count: int, experts: int) -> Array:
    """How often each document chose each expert: [n, k] -> [count, E]."""
    cells = (documents[:, None] * experts + chosen).flatten()
    load: Array = torch.bincount(cells, minlength=count * experts).view(count, experts).double().cpu().numpy()
    return load


def result(state: RouterState) -> Found:
    """Every layer, then all layers of a feed together ("feed=local"), the latter also by domain."""
    found = Found(state.lane)
    for slice_name, layers, documents in _slices(state):
        _ratios(found, slice_name, _summed(layers, documents), documents)
        found.add("router.load_distance", slice_name, "fraction", _load_distance(layers, documents), "no tokens")
    if any(number > 0 for _, number in state.stretches):  # else it would say again what "all" says
        for (feed, number), table in sorted(state.stretches.items()):
            documents = np.flatnonzero(table[:, 0])
            _ratios(found, join(stretch_name(number), f"feed={feed}"), table[documents], documents)
    return found


def base_result(state: RouterState, lane: str) -> Found:
    """What the base shows alone, from the state of any lane that was measured against it; equal in both feeds."""
    found = Found(lane)
    for slice_name, layers, documents in _slices(state):
        _ratios(found, slice_name, _summed(layers, documents), documents, BASE_RATIOS)
    return found


def _slices(state: RouterState) -> Iterator[tuple[str, list[LayerSums], statistics.Index]]:
    """Slice names, the layers that they cover, and the documents."""
    for (layer, feed), sums in state.layers.items():
        yield f"layer={layer},feed={feed}", [sums], np.flatnonzero(sums.sums[:, 0])
    for feed in dict.fromkeys(feed for _, feed in state.layers):
        layers = [sums for (_, one), sums in state.layers.items() if one == feed]
        present = np.flatnonzero(sum(sums.sums[:, 0] for sums in layers))
        for slice_name, mask in by_domain(present, state.domains):
            yield join(slice_name, f"feed={feed}"), layers, present[mask]


def _summed(layers: Sequence[LayerSums], documents: statistics.Index) -> Array:
    """Sums over the layers, [documents, columns]."""
    summed: Array = np.sum([sums.sums[documents] for sums in layers], axis=0)
    return summed


def _ratios(
    found: Found,
    slice_name: str,
    table: Array,
    documents: statistics.Index,
    ratios: Mapping[str, tuple[str, str, str]] = RATIOS,
) -> None:
    """Those of a table [documents, columns]."""
    for name, (top, bottom, unit) in ratios.items():
        numerators, denominators = table[:, COLUMNS.index(top)], table[:, COLUMNS.index(bottom)]
        bounded = unit == "fraction"
        estimate = (statistics.proportion if bounded else statistics.ratio)(numerators, denominators, documents)
        found.add(f"router.{name}", slice_name, unit, estimate, WHY_EMPTY.get(name, "no tokens"))


def _load_distance(layers: Sequence[LayerSums], documents: statistics.Index) -> Estimate:
    """Mean over the layers of half the L1 distance of the load histograms."""
    moved, choices = np.zeros(len(documents)), np.zeros(len(documents))
    for sums in layers:
        before, after = sums.base_load[documents], sums.load[documents]
        sign = np.sign((after - before).sum(0))
        moved += 0.5 * ((after - before) @ sign)
        choices += before.sum(1)
    return statistics.ratio(moved, choices, documents)

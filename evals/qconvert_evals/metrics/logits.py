"""Next-token distributions of a candidate against the base: perplexity, KL divergence, probabilities, top tokens.

With p the base's and q the candidate's distribution over the full vocabulary at one position, and y the token that
follows:

    kl      = sum_v p(v) (ln p(v) - ln q(v))           nll  = -ln p(y), -ln q(y)
    dp      = q(y) - p(y)                              overlap = sum_v min(p(v), q(v))

These are the statistics of llama.cpp's `llama-perplexity --kl-divergence`, with its interpolated percentiles, so that
tables compare. Three things differ on purpose: logits are fp32 and the arithmetic float64 (its 16-bit file hides
divergences under 5e-4), every position with a successor counts (it scores the second half of each chunk), and
intervals are clustered by document. Top-5 overlap is |A and B| / 5. Logits of a BF16 head are coarse enough to be equal
at times: then the token of lower number counts as the more likely one, as in greedy decoding.

Left out: divergences in the other direction or symmetrised ones; they rank checkpoints as this one does, and users
quote this one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qconvert_evals import statistics
from qconvert_evals.metrics.found import Found, Mask, by_domain, by_stretch
from qconvert_evals.metrics.table import TokenTable
from qconvert_evals.statistics import Array, Estimate, Index

KL_LEVELS = {
    "kl_max": 1.0, "kl_p99_9": 0.999, "kl_p99": 0.99, "kl_p95": 0.95, "kl_p90": 0.9, "kl_median": 0.5,
    "kl_p10": 0.1, "kl_p5": 0.05, "kl_p1": 0.01, "kl_p0_1": 0.001, "kl_min": 0.0,
}  # fmt: skip
DP_LEVELS = {
    "dp_max": 1.0, "dp_p99_9": 0.999, "dp_p99": 0.99, "dp_p95": 0.95, "dp_p90": 0.9, "dp_p75": 0.75, "dp_median": 0.5,
    "dp_p25": 0.25, "dp_p10": 0.1, "dp_p5": 0.05, "dp_p1": 0.01, "dp_p0_1": 0.001, "dp_min": 0.0,
}  # fmt: skip
SHARES = {"top1_agreement": "same_top", "top5_overlap": "top5", "sampled_overlap": "overlap"}
HISTOGRAM_EDGES = [10.0 ** (exponent / 4) for exponent in range(-40, 9)]  # quarter decades from 1e-10 to 1e2


@dataclass
class LogitsState:
    """Numbers per token; `domains` names the domain of each document."""

    lane: str
    domains: Sequence[str]
    table: TokenTable = field(default_factory=TokenTable)


def log_probabilities(logits: Tensor) -> Tensor:
    """fp32 (or float64) logits [n, V] -> float64 log-probabilities [n, V]."""
    return torch.log_softmax(logits.double(), dim=-1)


def update(
    state: LogitsState, base: Tensor, candidate: Tensor, targets: Tensor, documents: Tensor, places: Tensor
) -> None:
    """Add n positions: log-probabilities [n, V] of both, the token that follows [n], its document [n] and place [n].

    `places` is any running number by which the caller finds the position again for the table of worst tokens.
    """
    p, q = base.exp(), candidate.exp()
    at = targets[:, None]
    five = min(5, base.shape[-1])
    base_top, candidate_top = base.argmax(-1), candidate.argmax(-1)
    shared = (top_tokens(base, five)[:, :, None] == top_tokens(candidate, five)[:, None, :]).any(-1)  # [n, 5]
    state.table.append(
        kl=(p * (base - candidate)).sum(-1),
        nll_base=-base.gather(1, at)[:, 0],
        nll=-candidate.gather(1, at)[:, 0],
        dp=(q.gather(1, at) - p.gather(1, at))[:, 0],
        overlap=torch.minimum(p, q).sum(-1),
        same_top=base_top == candidate_top,
        top5=shared.double().mean(-1),
        base_top=base_top,
        candidate_top=candidate_top,
        target=targets,
        document=documents,
        place=places,
    )


def top_tokens(log_p: Tensor, count: int) -> Tensor:
    """[n, V] -> [n, count], the most likely tokens in any order; of equal ones those of lower number, as in argmax.

    topk alone may take any of several equal ones.
    """
    values, tokens = log_p.topk(count)
    tied = (log_p >= values[:, -1:]).sum(-1) > count
    tokens[tied] = log_p[tied].sort(dim=-1, descending=True, stable=True).indices[:, :count]
    return tokens


def result(state: LogitsState, positions: Index | None = None) -> Found:
    """All measurements, for "all" and for each domain; given positions in the sequence [tokens], the first by these."""
    found = Found(state.lane)
    documents = state.table.indices("document")
    finite = np.isfinite(state.table.numbers("kl")) & np.isfinite(state.table.numbers("nll"))
    broken = int((~finite).sum())
    found.add("logits.nonfinite_tokens", "all", "tokens", statistics.exact(broken, len(documents)))
    for slice_name, mask in by_domain(documents, state.domains):
        columns, why = _finite(state, mask, finite)
        _perplexity(found, slice_name, columns, why)
        _divergence(found, slice_name, columns, why)
        _probability(found, slice_name, columns, why)
    for slice_name, mask in by_stretch(positions) if positions is not None else ():
        columns, why = _finite(state, mask, finite)
        ratio = statistics.mean(columns["nll"] - columns["nll_base"], columns.documents)
        found.add("logits.kl_mean", slice_name, "nats", statistics.mean(columns["kl"], columns.documents), why)
        found.add("logits.ppl_ratio", slice_name, "ratio", ratio.mapped(_exp), why)
        found.add("logits.top1_agreement", slice_name, "fraction", _share(columns, "same_top"), why)
    return found


def _finite(state: LogitsState, mask: Mask, finite: Mask) -> tuple[_Columns, str]:
    """The columns under a mask, empty if a token of it has no finite numbers; and the reason to give then."""
    lost = int((~finite & mask).sum())
    why = f"{lost} of {int(mask.sum())} tokens have no finite probabilities" if lost else "no tokens"
    return _Columns(state.table, mask & finite if not lost else np.zeros_like(mask)), why


def base_result(state: LogitsState, lane: str) -> Found:
    """The base lane's own perplexity, read from any candidate's state, since all hold the same tokens."""
    found = Found(lane)
    documents = state.table.indices("document")
    for slice_name, mask in by_domain(documents, state.domains):
        nll = statistics.mean(state.table.numbers("nll_base")[mask], documents[mask])
        found.add("logits.ppl", slice_name, "ppl", nll.mapped(_exp))
    return found


class _Columns:
    """The table's columns under a mask."""

    def __init__(self, table: TokenTable, mask: Mask) -> None:
        self._table, self._mask = table, mask
        self.documents: Index = table.indices("document")[mask]

    def __getitem__(self, name: str) -> Array:
        return self._table.numbers(name)[self._mask]


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def _perplexity(found: Found, slice_name: str, columns: _Columns, why: str) -> None:
    base, own, documents = columns["nll_base"], columns["nll"], columns.documents
    log_ratio = statistics.mean(own - base, documents)
    found.add("logits.ppl", slice_name, "ppl", statistics.mean(own, documents).mapped(_exp), why)
    found.add("logits.ln_ppl_ratio", slice_name, "nats", log_ratio, why)
    found.add("logits.ppl_ratio", slice_name, "ratio", log_ratio.mapped(_exp), why)
    found.add("logits.ppl_difference", slice_name, "ppl", _difference(base, own, documents), why)
    constant = why if len(own) == 0 else "the tokens all have the same probability"
    found.add("logits.ln_ppl_correlation", slice_name, "r", statistics.correlation(base, own, documents), constant)


def _difference(base: Array, own: Array, documents: Index) -> Estimate:
    """exp(mean own) - exp(mean base); influence of a token by the derivative of exp."""
    if len(own) == 0:
        return statistics.NOTHING
    before, after = _exp(float(base.mean())), _exp(float(own.mean()))
    influence = after * (own - own.mean()) - before * (base - base.mean())
    return statistics.linearised(after - before, influence, documents)


def _divergence(found: Found, slice_name: str, columns: _Columns, why: str) -> None:
    kl = columns["kl"]
    found.add("logits.kl_mean", slice_name, "nats", statistics.mean(kl, columns.documents), why)
    points = statistics.quantiles(kl, list(KL_LEVELS.values()), columns.documents)
    for name, estimate in zip(KL_LEVELS, points, strict=True):
        found.add(f"logits.{name}", slice_name, "nats", estimate, why)


def _probability(found: Found, slice_name: str, columns: _Columns, why: str) -> None:
    dp, documents = columns["dp"], columns.documents
    found.add("logits.dp_mean", slice_name, "fraction", statistics.mean(dp, documents), why)
    found.add("logits.dp_rms", slice_name, "fraction", statistics.root_mean_square(dp, documents), why)
    points = statistics.quantiles(dp, list(DP_LEVELS.values()), documents)
    for name, estimate in zip(DP_LEVELS, points, strict=True):
        found.add(f"logits.{name}", slice_name, "fraction", estimate, why)
    for name, column in SHARES.items():
        found.add(f"logits.{name}", slice_name, "fraction", _share(columns, column), why)


def _share(columns: _Columns, name: str) -> Estimate:
    """Mean of a column of shares of one token."""
    values = columns[name]
    return statistics.proportion(values, np.ones(len(values)), columns.documents)


def histogram(state: LogitsState) -> dict[str, list[float]]:
    """Counts of finite divergences in quarter decades; the outer bins also hold what lies beyond, such as zeros."""
    kl = state.table.numbers("kl")
    inside = np.clip(kl[np.isfinite(kl)], HISTOGRAM_EDGES[0], HISTOGRAM_EDGES[-1])
    counts, _ = np.histogram(inside, bins=HISTOGRAM_EDGES)
    return {"edges": HISTOGRAM_EDGES, "counts": [int(count) for count in counts]}


def by_position(state: LogitsState, positions: Index) -> list[dict[str, Any]]:
    """Mean divergence by position in the sequence, in buckets that double: 0, 1, 2-3, 4-7, ..."""
    kl = state.table.numbers("kl")
    bucket = np.ceil(np.log2(positions + 1)).astype(np.int64)
    rows = []
    for number in np.unique(bucket).tolist():
        mask = (bucket == number) & np.isfinite(kl)
        if mask.any():
            first, last = (0, 0) if number == 0 else (2 ** (number - 1), 2**number - 1)
            rows.append({"first": first, "last": last, "n": int(mask.sum()), "kl_mean": float(kl[mask].mean())})
    return rows


def worst(state: LogitsState, count: int) -> list[dict[str, Any]]:
    """The tokens of largest divergence, those without finite one first, by place and token numbers."""
    kl = state.table.numbers("kl")
    order = np.argsort(-np.where(np.isfinite(kl), kl, np.inf), kind="stable")[:count]
    names = ("document", "place", "target", "base_top", "candidate_top")
    columns = {name: state.table.indices(name) for name in names}
    return [
        {"kl": float(kl[i]) if math.isfinite(kl[i]) else None, **{name: int(columns[name][i]) for name in names}}
        for i in order.tolist()
    ]

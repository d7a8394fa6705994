"""Acceptance counted in real speculative decoding: the loop drafts, verifies, rolls back and goes on.

    acceptance_live at position j = prod_{i <= j} accepted at i / drafts checked at i
    accept_length_live            = 1 + sum over j

A draft is checked when all before it were accepted, so the product is accepted at j / drafting steps, which is vLLM's
per-position rate, wherever a step drafts its full k tokens. The last step of an output may draft fewer; the product
keeps that from counting as a rejection. One document is one prompt, so intervals are over prompts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from qconvert_evals import statistics
from qconvert_evals.metrics.found import Found, by_domain, join
from qconvert_evals.statistics import Array, Estimate, Index


@dataclass
class LiveState:
    """Counts per prompt and position: drafts checked and accepted; and the document that the prompt came from."""

    lane: str
    domains: Sequence[str]
    steps: int
    documents: list[int] = field(default_factory=list)
    drafted: list[list[int]] = field(default_factory=list)
    accepted: list[list[int]] = field(default_factory=list)


def update(state: LiveState, document: int, drafted: Sequence[int], accepted: Sequence[int]) -> None:
    """Add one prompt's counts by draft position; `drafted` counts the drafts that were checked."""
    state.documents.append(document)
    state.drafted.append(_padded(drafted, state.steps))
    state.accepted.append(_padded(accepted, state.steps))


def _padded(counts: Sequence[int], steps: int) -> list[int]:
    return [*counts, *[0] * (steps - len(counts))]


def result(state: LiveState) -> Found:
    """Rates by position and domain, and the accept length."""
    if not state.documents:
        return absent(state.lane, state.steps, "no document is long enough for a prompt")
    found, why = Found(state.lane), "no draft got that far"
    documents = np.asarray(state.documents, dtype=np.int64)
    reached = np.asarray(state.drafted, dtype=np.float64)  # [prompts, steps]
    accepted = np.asarray(state.accepted, dtype=np.float64)
    for slice_name, mask in by_domain(documents, state.domains):
        rows = documents[mask]
        rates = [_chain(accepted[mask, : step + 1], reached[mask, : step + 1], rows) for step in range(state.steps)]
        drafts = int(reached[mask, 0].sum())
        for step, (value, influence) in enumerate(rates, start=1):
            estimate = _estimate(value, influence, rows, drafts)
            found.add("mtp.acceptance_live", join(f"position={step}", slice_name), "fraction", estimate, why)
        total = sum(value for value, _ in rates)
        summed = np.sum([influence for _, influence in rates], axis=0)
        estimate = _estimate(total, summed, rows, drafts, state.steps).mapped(lambda x: 1 + x)
        found.add("mtp.accept_length_live", slice_name, "tokens", estimate, why)
    return found


def _chain(accepted: Array, reached: Array, documents: Index) -> tuple[float, Array]:
    """Product of accepted / reached over the positions [prompts, positions], and its influence values [prompts]."""
    total, tries = accepted.sum(0), reached.sum(0)
    if not total.all():
        return (math.nan if tries[0] == 0 else 0.0), np.zeros(len(documents))
    value = float(np.prod(total / tries))
    return value, len(documents) * value * (accepted / total - reached / tries).sum(1)


def _estimate(value: float, influence: Array, documents: Index, n: int, largest: int = 1) -> Estimate:
    """Bounds within [0, largest]; where every draft went the same way, those of as many trials as prompts."""
    if not math.isfinite(value):
        return statistics.NOTHING
    one = statistics.linearised(value, influence, documents)
    if value in (0.0, largest):
        one = statistics.certain(value / largest, len(np.unique(documents)), documents).mapped(lambda x: largest * x)
    return Estimate(value, n, one.low, one.high).within(0.0, float(largest))


def absent(lane: str, steps: int, why: str) -> Found:
    """What a lane that did not decode cannot show."""
    found = Found(lane)
    rows = [("mtp.acceptance_live", f"position={step}", "fraction") for step in range(1, steps + 1)]
    found.absent([*rows, ("mtp.accept_length_live", "all", "tokens")], why)
    return found

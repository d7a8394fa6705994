"""The speculative loop held against its own text: what it kept at each anchor, and what teacher forcing finds there.

A loop drafts at anchors, each behind the last token that it had written. Afterwards the trunk and the head read the
whole text at once, and the forced outcome at the same anchor says how many of the drafts the trunk agrees with.

    live_replay_gap at position j   mean over anchors with j drafts or more of   [kept >= j] - [replayed >= j]
    live_replay_gap_length          mean over anchors of                          kept - replayed
    live_replay_exact               prompts at all of whose anchors kept = replayed, as a share of prompts

On greedy output the two are the same event twice, so the difference is paired anchor by anchor and what is left is
rounding: the loop reads tokens one at a time, teacher forcing all of them together, and where two logits nearly tie
they may decide otherwise. A loop that forgets to take back what it refused, or feeds the head the wrong state, keeps
other drafts than the text says. It is the loop that is tested here, not the conversion.

Intervals are over prompts, and never narrower than the rule of three allows: when none of G prompts differs, at 95%
confidence at most 1 - 0.05^(1/G) of all do (about 3 / G), and a prompt that differs does so at one of its anchors, as
nearly all do in which rounding decided. So a fault that breaks single prompts entirely, fewer than that share of them,
may stay unseen; one in the loop breaks them all.

Left out: slices by domain, for which no run has prompts enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from qconvert_evals import statistics
from qconvert_evals.metrics.found import Found
from qconvert_evals.statistics import Array, Estimate, Index

GAP, GAP_LENGTH, EXACT = "mtp.live_replay_gap", "mtp.live_replay_gap_length", "mtp.live_replay_exact"
NO_ANCHOR = "no document is long enough for a prompt and what the drafts are held against"


@dataclass
class ReplayState:
    """One entry an anchor: the prompt's document, drafts made, drafts kept live, drafts kept by the forced outcome."""

    lane: str
    steps: int
    documents: list[int] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    replayed: list[int] = field(default_factory=list)


def update(
    state: ReplayState, document: int, drafts: Sequence[int], kept: Sequence[int], forced: Sequence[int]
) -> None:
    """Add the anchors of one prompt; `forced` is the run of right drafts there, however many the loop made."""
    for made, stayed, run in zip(drafts, kept, forced, strict=True):
        state.documents.append(document)
        state.drafts.append(made)
        state.kept.append(stayed)
        state.replayed.append(min(run, made))


def result(state: ReplayState) -> Found:
    """Gap by position, gap of the length, share of prompts without any."""
    if not state.documents:
        return absent(state.lane, state.steps, NO_ANCHOR)
    found, why = Found(state.lane), "no anchor has room for that many drafts"
    documents = np.asarray(state.documents, dtype=np.int64)
    drafts, kept, replayed = (
        np.asarray(one, dtype=np.float64) for one in (state.drafts, state.kept, state.replayed)
    )  # each [anchors]
    for position in range(1, state.steps + 1):
        gap = (kept >= position).astype(np.float64) - (replayed >= position)
        had_room = (drafts >= position).astype(np.float64)
        found.add(GAP, f"position={position}", "fraction", paired(gap, had_room, documents), why)
    ones = np.ones(len(documents))
    found.add(GAP_LENGTH, "all", "tokens", paired(kept - replayed, ones, documents, state.steps))
    found.add(EXACT, "all", "fraction", _exact_prompts(kept == replayed, documents))
    return found


def paired(gap: Array, trials: Array, documents: Index, largest: int = 1) -> Estimate:
    """Mean gap [anchors] over the trials (0 or 1 each), bounds at least as wide as for no prompt in G that differs."""
    estimate = statistics.ratio(gap * trials, trials, documents)
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return estimate
    prompts = len(np.unique(documents))
    floor = rule_of_three(prompts) * largest * prompts / float(trials.sum())  # one anchor in each that differs
    low, high = min(estimate.low, estimate.value - floor), max(estimate.high, estimate.value + floor)
    return Estimate(estimate.value, estimate.n, max(-float(largest), low), min(float(largest), high))


def rule_of_three(n: int) -> float:
    """The largest share, at the usual confidence, of what was not seen once in n independent draws."""
    share: float = 1 - (1 - statistics.CONFIDENCE) ** (1 / n)
    return share


def _exact_prompts(same: np.typing.NDArray[np.bool_], documents: Index) -> Estimate:
    prompts = np.unique(documents)
    exact = np.asarray([same[documents == one].all() for one in prompts], dtype=np.float64)
    return statistics.proportion(exact, np.ones(len(prompts)), prompts)


def absent(lane: str, steps: int, why: str) -> Found:
    """What a lane that did not decode cannot show."""
    found = Found(lane)
    rows = [(GAP, f"position={step}", "fraction") for step in range(1, steps + 1)]
    found.absent([*rows, (GAP_LENGTH, "all", "tokens"), (EXACT, "all", "fraction")], why)
    return found

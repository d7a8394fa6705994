"""Acceptance of the MTP head's drafts: would the lane's own trunk have said the same?

At an anchor t the trunk has seen tokens x_0 .. x_t and the head drafts k tokens. Step j is fed token x_{t+j} and
drafts what follows it; the target is the trunk's distribution behind x_{t+j}. With d_j and a_j the most likely tokens
of draft and target at step j and q_j, p_j their distributions, step j is accepted

    greedy                  when  d_i = a_i  for all i <= j                    (a rejection ends the run)
    sampled_greedy_drafts   with probability  prod_{i <= j} p'_i(d_i)
    sampled                 with probability  prod_{i <= j} sum_v min(p_i(v), q_i(v))

    acceptance at position j = accepted at j / anchors           accept_length = 1 + sum over j

(the 1 is the token that the trunk adds itself): non-increasing in j, one count per drafting step, as in the
per-position rates and the mean acceptance length that vLLM prints. `acceptance_conditional` divides by the anchors that
survived step j - 1 instead. Which of them an engine prints depends on how it samples:

- temperature 0: greedy.
- sampling: vLLM and SGLang by default draft the most likely token still, and accept it with the probability that the
  target has for it. That is sampled_greedy_drafts; p' is what a server samples from, after temperature, top-k and top-p
  of generation_config.json (see `sampling`).
- rejection sampling with drafts drawn from q, as the method was published: sampled, here at temperature 1 and without
  filters. It is the highest rate that drafts from this head can have, and says most about distributions.

Teacher forcing: the text decides what the steps are fed, whatever was drafted. On greedy output of the same lane
x_{t+1+j} = a_j, so an accepted draft is what the text feeds next, and each anchor's outcome is that of a live loop
which drafts at t. On other text draft and target still share their context, which is all that the comparison needs.
Two averages remain apart: this one runs over all anchors, a live loop drafts only behind its last accepted token
(`replay` compares at the loop's own anchors); and the products of the sampled rates follow the text, where a live loop
follows the tokens that it accepted.

A lane's drafts are judged by its own trunk. Rows `<name>_difference` are candidate minus base, paired anchor by
anchor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from qconvert_evals import statistics
from qconvert_evals.metrics.found import Found, by_domain, by_stretch, join
from qconvert_evals.metrics.table import TokenTable
from qconvert_evals.sampling import PLAIN, Sampling
from qconvert_evals.statistics import Array, Index

KINDS = ("greedy", "sampled_greedy_drafts", "sampled")


@dataclass
class AcceptanceState:
    """Accepted (0 or 1) and expected acceptance per step and anchor; `context` is "" for the documents' own text,
    `sampling` what greedy drafts are accepted under."""

    lane: str
    domains: Sequence[str]
    steps: int
    context: str = ""
    sampling: Sampling = PLAIN
    table: TokenTable = field(default_factory=TokenTable)


def update(
    state: AcceptanceState,
    drafts: Sequence[Tensor],
    targets: Sequence[Tensor],
    documents: Tensor,
    positions: Tensor,
) -> None:
    """Add n anchors: for each step the logits [n, V] of draft and target; document [n] and position [n] of each."""
    columns: dict[str, Tensor] = {"document": documents, "position": positions}
    so_far = [torch.ones(len(documents), dtype=torch.float64, device=documents.device)] * len(KINDS)
    for step, (draft, target) in enumerate(zip(drafts, targets, strict=True), start=1):
        accepted = _chances(draft, target, state.sampling)
        so_far = [before * now for before, now in zip(so_far, accepted, strict=True)]
        columns |= {f"{kind}{step}": rate for kind, rate in zip(KINDS, so_far, strict=True)}
    state.table.append(**columns)


def _chances(draft: Tensor, target: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
    """Probability that a draft stays, in the order of KINDS; logits [n, V] -> fp64 [n] each."""
    token = draft.argmax(-1)
    q, p = torch.softmax(draft.double(), -1), torch.softmax(target.double(), -1)
    served = p if sampling.plain else sampling.probabilities(target)
    greedy = (token == target.argmax(-1)).double()
    return greedy, served.gather(-1, token[:, None])[:, 0], torch.minimum(p, q).sum(-1)


def result(state: AcceptanceState, base: AcceptanceState | None = None) -> Found:
    """Rates by step and domain, and by position in the sequence; with `base`, the paired differences too."""
    found = Found(state.lane)
    documents = state.table.indices("document")
    slices = [*by_domain(documents, state.domains), *by_stretch(state.table.indices("position"))]
    for slice_name, mask in slices:
        rows = documents[mask]
        for kind in KINDS:
            own = _accepted(state, kind)[mask]
            other = None if base is None else _accepted(base, kind)[mask]
            _rates(found, state, kind, slice_name, own, other, rows)
    return found


def accept_length_name(kind: str) -> str:
    """`accept_length` is the greedy one."""
    return "mtp.accept_length" if kind == "greedy" else f"mtp.accept_length_{kind}"


def _accepted(state: AcceptanceState, kind: str) -> Array:
    """[anchors, steps]."""
    columns = [state.table.numbers(f"{kind}{step}") for step in range(1, state.steps + 1)]
    return np.stack(columns, axis=1)


def _rates(
    found: Found, state: AcceptanceState, kind: str, domain: str, own: Array, base: Array | None, documents: Index
) -> None:
    """Rows of one domain; own and base [anchors, steps]."""
    name, ones, why = f"mtp.acceptance_{kind}", np.ones(len(own)), "every sequence is shorter than the drafts"
    for step in range(state.steps):
        at = join(f"position={step + 1}", domain, state.context)
        found.add(name, at, "fraction", statistics.proportion(own[:, step], ones, documents), why)
        if base is not None:
            change = statistics.difference(own[:, step], base[:, step], documents)
            found.add(f"{name}_difference", at, "fraction", change, why)
        if kind == "greedy" and step:
            survived = statistics.proportion(own[:, step], own[:, step - 1], documents)
            found.add("mtp.acceptance_conditional", at, "fraction", survived, "no draft survived the step before")
    at, length = join(domain, state.context), accept_length_name(kind)
    found.add(length, at, "tokens", statistics.mean(1 + own.sum(1), documents), why)
    if base is not None:
        change = statistics.difference(own.mean(1), base.mean(1), documents).mapped(lambda share: state.steps * share)
        found.add(f"{length}_difference", at, "tokens", change, why)


def absent(lane: str, steps: int, why: str) -> Found:
    """What a lane without an MTP head cannot show."""
    found = Found(lane)
    for kind in KINDS:
        rows = [(f"mtp.acceptance_{kind}", f"position={step}", "fraction") for step in range(1, steps + 1)]
        found.absent([*rows, (accept_length_name(kind), "all", "tokens")], why)
    return found

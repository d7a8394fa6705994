"""Log-likelihoods of continuations, layer by layer, so that a lane needs no more memory than one layer and the tokens.

A request is a row of tokens of which the last `scored` ones are to be predicted:

    log p = sum over the scored tokens t of log softmax(logits before t)[t],   greedy = every one of them is the argmax

The last token is never fed. What is fed for one request may be the beginning of what is fed for another: a question
whose four answers are one token each is one row, and equal requests are one row. A causal model's outputs do not depend
on what comes later, so the shorter one is read off the longer one's row, as padding changes nothing either.

Rows go through the trunk in passes of at most HELD_TOKENS tokens; every pass reads all layers once. Sums are fp64.

Left out: sharing a beginning of which two rows go on differently. It would need the state behind the beginning, and a
matrix product over fewer rows rounds differently: then a score would depend on what else was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qconvert_evals.metrics.logits import log_probabilities
from qconvert_evals.predictions import row_logits, row_slices
from qconvert_reference.lane import Lane

BATCH_TOKENS = 4096
HELD_TOKENS = 1 << 18

Begin = Callable[[str, int], Callable[[], None]]  # stage, total -> tick


@dataclass(frozen=True)
class Span:
    """Tokens, the last `scored` of which are predicted from all before them."""

    tokens: tuple[int, ...]
    scored: int

    def __post_init__(self) -> None:
        if not 0 < self.scored < len(self.tokens):
            raise ValueError(f"{self.scored} of {len(self.tokens)} tokens cannot be predicted")

    @property
    def fed(self) -> tuple[int, ...]:
        """All but the last token."""
        return self.tokens[:-1]


@dataclass(frozen=True)
class Score:
    """Log-likelihood in nats, and whether greedy decoding would have written the same."""

    log_likelihood: float
    greedy: bool


def score(lane: Lane, spans: Sequence[Span], begin: Begin) -> list[Score]:
    """One score per span, in order."""
    rows, row_of = merge([span.fed for span in spans])
    passes = list(_passes(rows))
    tick = begin(f"scoring, {lane.name}", lane.num_layers * sum(len(batches) for batches in passes))
    members: dict[int, list[int]] = {}
    for number, row in enumerate(row_of):
        members.setdefault(row, []).append(number)
    scores: dict[int, Score] = {}
    for batches in passes:
        hidden = [lane.embed(_padded([rows[row] for row in batch]).to(lane.device)) for batch in batches]
        for index in range(lane.num_layers):
            layer = lane.layer(index)
            for number, entering in enumerate(hidden):
                hidden[number] = layer(entering).hidden
                tick()
            del layer
        for batch, states in zip(batches, hidden, strict=True):
            normed = lane.finish(states)  # [B, T, H]
            for place, row in enumerate(batch):
                for number in members[row]:
                    scores[number] = _score(lane, normed[place], spans[number])
    return [scores[number] for number in range(len(spans))]


def merge(fed: Sequence[tuple[int, ...]]) -> tuple[list[tuple[int, ...]], list[int]]:
    """The rows that have to be run, none the beginning of another, and for every request the number of its row."""
    order = sorted(range(len(fed)), key=lambda number: fed[number], reverse=True)
    rows: list[tuple[int, ...]] = []
    row_of = [0] * len(fed)
    for number in order:  # whatever begins with this one stands right in front of it
        if not rows or rows[-1][: len(fed[number])] != fed[number]:
            rows.append(fed[number])
        row_of[number] = len(rows) - 1
    return rows, row_of


def _passes(rows: Sequence[tuple[int, ...]]) -> Iterator[list[list[int]]]:
    """Row numbers in batches of similar length, batches in passes."""
    order = sorted(range(len(rows)), key=lambda number: (-len(rows[number]), rows[number]))
    batches: list[list[int]] = []
    held = 0
    while order:
        width = len(rows[order[0]])
        count = max(1, BATCH_TOKENS // width)
        batch, order = order[:count], order[count:]
        if batches and held + width * len(batch) > HELD_TOKENS:
            yield batches
            batches, held = [], 0
        batches.append(batch)
        held += width * len(batch)
    if batches:
        yield batches


def _padded(rows: Sequence[tuple[int, ...]]) -> Tensor:
    """[B, T], zeros on the right."""
    padded = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = torch.tensor(row)
    return padded


def _score(lane: Lane, normed: Tensor, span: Span) -> Score:
    """normed [T, H] of the row that holds the span."""
    end = len(span.fed)
    states = normed[end - span.scored : end]  # [scored, H]
    targets = torch.tensor(span.tokens[-span.scored :])
    total, greedy = 0.0, True
    for part in row_slices(span.scored, lane.config.vocab_size):
        found = log_probabilities(row_logits(lane, states[part]))
        wanted = targets[part].to(found.device)
        total += float(found.gather(1, wanted[:, None]).sum())
        greedy = greedy and bool((found.argmax(-1) == wanted).all())
    return Score(total, greedy)

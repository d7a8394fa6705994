"""Log-likelihoods of continuations, layer by layer, so that a lane needs no more memory than one layer and the tokens.

A request is a row of tokens of which the last `scored` ones are to be predicted:

    log p = sum over the scored tokens t of log softmax(logits before t)[t],   greedy = every one of them is the argmax

The last token is never fed. What is fed for one request may be the beginning of what is fed for another: a question
whose four answers are one token each is one row, and equal requests are one row. A causal model's outputs do not depend
on what comes later, so the shorter one is read off the longer one's row, as padding changes nothing either.

Rows that go on differently behind a long beginning share that as well (`sharing`).

Rows go through the trunk in passes of at most HELD_TOKENS tokens; every pass reads all layers once. Sums are fp64.

In fp32 a score is that of the request alone to the rounding of its products. In BF16 it depends a little on what else
is in its batch, as it does in every engine; all lanes are given the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qconvert_evals.metrics.logits import log_probabilities
from qconvert_evals.predictions import row_logits, row_slices
from qconvert_evals.tasks.sharing import Batch, batches, cost, families
from qconvert_reference.cache import AttentionState, Cache, DeltaState
from qconvert_reference.lane import Lane
from qconvert_reference.layer import DecoderLayer

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
    members: dict[int, list[int]] = {}
    for number, row in enumerate(row_of):
        members.setdefault(row, []).append(number)
    wanted = [min(len(spans[one].fed) - spans[one].scored for one in members[row]) for row in range(len(rows))]
    passes = list(_passes(rows, batches(rows, families(rows, wanted), BATCH_TOKENS)))
    tick = begin(f"scoring, {lane.name}", lane.num_layers * sum(map(len, passes)))
    scores: dict[int, Score] = {}
    for part in passes:
        running = [_Running(lane, rows, batch) for batch in part]
        for index in range(lane.num_layers):
            layer = lane.layer(index)
            for one in running:
                one.step(layer, Cache.empty(lane.config).layers[index])
                tick()
            del layer
        for one in running:
            normed = lane.finish(one.hidden)  # [B, T, H]
            for place, row in enumerate(one.batch.rows):
                for number in members[row]:
                    scores[number] = _score(lane, normed[place], spans[number], one.batch.shared)
    return [scores[number] for number in range(len(spans))]


class _Running:
    """A batch on its way through the layers."""

    def __init__(self, lane: Lane, rows: Sequence[tuple[int, ...]], batch: Batch) -> None:
        self.batch = batch
        self.hidden = lane.embed(_padded([rows[row][batch.shared :] for row in batch.rows]).to(lane.device))
        self._owners = torch.tensor(batch.owners, dtype=torch.long).to(lane.device)
        self._prefix = lane.embed(_padded(batch.prefixes).to(lane.device)) if batch.is_shared else None

    def step(self, layer: DecoderLayer, state: AttentionState | DeltaState) -> None:
        """One layer; what is shared goes first and leaves its state to the rows."""
        if self._prefix is None:
            self.hidden = layer(self.hidden).hidden
            return
        self._prefix = layer(self._prefix, state).hidden
        state.take(self._owners)
        self.hidden = layer(self.hidden, state, self.batch.shared).hidden


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


def _passes(rows: Sequence[tuple[int, ...]], made: Sequence[Batch]) -> Iterator[list[Batch]]:
    """Batches that are held at the same time."""
    part: list[Batch] = []
    held = 0
    for batch in made:
        if part and held + cost(rows, batch) > HELD_TOKENS:
            yield part
            part, held = [], 0
        part.append(batch)
        held += cost(rows, batch)
    if part:
        yield part


def _padded(rows: Sequence[tuple[int, ...]]) -> Tensor:
    """[B, T], zeros on the right."""
    padded = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = torch.tensor(row)
    return padded


def _score(lane: Lane, normed: Tensor, span: Span, shared: int) -> Score:
    """normed [T, H] of the row that holds the span, without what it shares."""
    end = len(span.fed) - shared
    states = normed[end - span.scored : end]  # [scored, H]
    targets = torch.tensor(span.tokens[-span.scored :])
    total, greedy = 0.0, True
    for part in row_slices(span.scored, lane.config.vocab_size):
        found = log_probabilities(row_logits(lane, states[part]))
        wanted = targets[part].to(found.device)
        total += float(found.gather(1, wanted[:, None]).sum())
        greedy = greedy and bool((found.argmax(-1) == wanted).all())
    return Score(total, greedy)

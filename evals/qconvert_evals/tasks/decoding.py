"""Outputs of many prompts: greedy or sampled, in batches, each prompt alone with its own tokens.

Prompts of similar length share a batch. All rows read as many tokens as the shortest prompt has; from there on every
step feeds one token per row, its own next prompt token while it has one and then what it has chosen. So no row is ever
padded, which the state of a Gated DeltaNet layer would remember. Rows that are done leave the batch.

    greedy     argmax
    sampled    softmax(logits / temperature), cut to the top_k most likely, then to the fewest that reach top_p;
               the token where the running sum passes a uniform number

The uniform numbers of a row depend on its seed alone, not on its neighbours or on the lane: two lanes draw with the
same numbers, so that they differ by their probabilities and not by luck.

Left out: drafting with the MTP head, which changes no greedy output (tested with the reference) and is slower here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qconvert_reference.cache import Cache
from qconvert_reference.models.qwen3_next import Model

BATCH_ROWS = 16
SPREAD = 32  # tokens by which the prompts of one batch may differ in length


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen; temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0  # 0: no limit


@dataclass
class Row:
    """One prompt and its output so far; `done` looks at the output after every token."""

    prompt: Sequence[int]
    longest: int
    done: Callable[[list[int]], bool]
    sampling: Sampling = Sampling()
    seed: int = 0
    output: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("a prompt has no tokens")
        self._generator = torch.Generator().manual_seed(self.seed)

    def take(self, logits: Tensor) -> bool:
        """Choose from logits [V]; True when the output is complete."""
        chance = torch.rand((), dtype=torch.float64, generator=self._generator) if self.sampling.temperature else None
        self.output.append(choose(logits, self.sampling, chance))
        return len(self.output) >= self.longest or self.done(self.output)


def choose(logits: Tensor, sampling: Sampling, chance: Tensor | None) -> int:
    """A token from logits [V] and a uniform number in [0, 1)."""
    if chance is None:
        return int(logits.argmax())
    shares, tokens = (logits.double() / sampling.temperature).softmax(-1).sort(descending=True, stable=True)
    if sampling.top_k:
        shares = shares[: sampling.top_k]
    before = shares.cumsum(0) - shares
    shares = shares[before < sampling.top_p * shares.sum()] if sampling.top_p < 1 else shares
    running = shares.cumsum(0)
    place = int(torch.searchsorted(running, chance.to(running.device) * running[-1], right=True))
    return int(tokens[min(place, len(shares) - 1)])


def decode(model: Model, rows: Sequence[Row], tick: Callable[[], None]) -> None:
    """Fill the rows' outputs; `tick` is called for each row that is complete."""
    order = sorted(range(len(rows)), key=lambda number: (-len(rows[number].prompt), number))
    while order:
        limit = len(rows[order[0]].prompt) - SPREAD
        batch = [number for number in order[:BATCH_ROWS] if len(rows[number].prompt) >= limit]
        order = order[len(batch) :]
        _decode_batch(model, [rows[number] for number in batch], tick)


def _decode_batch(model: Model, rows: list[Row], tick: Callable[[], None]) -> None:
    cache = Cache.empty(model.config)
    read = min(len(row.prompt) for row in rows)
    feed = [list(row.prompt[:read]) for row in rows]
    while True:
        logits = last_logits(model, feed, cache)
        staying, following = [], []
        for number, row in enumerate(rows):
            if read < len(row.prompt):
                following.append([row.prompt[read]])
            elif row.take(logits[number]):
                tick()
                continue
            else:
                following.append(row.output[-1:])
            staying.append(number)
        if not staying:
            return
        if len(staying) < len(rows):
            rows = [rows[number] for number in staying]
            kept = torch.tensor(staying).to(model.embed.table.device)
            for state in cache.layers:
                state.take(kept)
        feed, read = following, read + 1


def last_logits(model: Model, feed: Sequence[Sequence[int]], cache: Cache) -> Tensor:
    """[B, V] behind the last token only: logits for a whole prompt would take more memory than the model's layers."""
    tokens = torch.tensor(feed, dtype=torch.long).to(model.embed.table.device)
    hidden = model.embed(tokens)
    for layer, state in zip(model.layers, cache.layers, strict=True):
        hidden = layer(hidden, state, cache.length).hidden
    cache.length += tokens.shape[1]
    return model.logits(model.finish(hidden[:, -1:]))[:, 0]

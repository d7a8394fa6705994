"""Next-token distributions of all lanes, a few hundred positions at a time.

Logits over a vocabulary of 150,000 are 1.2 MB a position in float64, so positions go through lm_head in slices of
about ROW_CELLS numbers: the base once, then each other lane against it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from qconvert_evals.corpus import Batch, Corpus, Tokenizer
from qconvert_evals.metrics import logits as logits_metric
from qconvert_evals.metrics.logits import LogitsState
from qconvert_evals.statistics import Index
from qconvert_evals.trunk import Track
from qconvert_reference.lane import Lane

ROW_CELLS = 1 << 21
CONTEXT_TOKENS = 24


def row_slices(count: int, vocabulary: int) -> Iterator[slice]:
    """Slices of rows whose logits have about ROW_CELLS numbers."""
    step = max(1, ROW_CELLS // vocabulary)
    for start in range(0, count, step):
        yield slice(start, start + step)


def row_logits(lane: Lane, normed: Tensor) -> Tensor:
    """[n, H] behind the final norm -> fp32 logits [n, V]."""
    return lane.logits(normed[None])[0]


def measure(
    base: Track, others: Sequence[Track], batches: Sequence[Batch], seq_len: int, tick: Callable[[], None]
) -> list[LogitsState]:
    """One filled state per lane in `others`, against the lane it is measured against; a position's place is sequence
    number * seq_len + position."""
    states = [LogitsState(track.lane.name, track.router.domains) for track in others]
    for number, batch in enumerate(batches):
        mask = batch.mask(drop=1)
        targets = batch.tokens.roll(-1, 1)[mask]
        documents = batch.spread(batch.documents)[mask]
        along = torch.arange(batch.tokens.shape[1], device=mask.device)
        places = (batch.spread(batch.numbers) * seq_len + along)[mask]
        normed = [track.normed[number][mask] for track in (base, *others)]  # each [n, H]
        for rows in row_slices(len(targets), base.lane.config.vocab_size):
            known = {base.lane.name: logits_metric.log_probabilities(row_logits(base.lane, normed[0][rows]))}
            for state, track, own in zip(states, others, normed[1:], strict=True):
                reference = known[(track.against or base).lane.name]
                candidate = logits_metric.log_probabilities(row_logits(track.lane, own[rows]))
                logits_metric.update(state, reference, candidate, targets[rows], documents[rows], places[rows])
                if any(other.against is track for other in others):
                    known[track.lane.name] = candidate
        tick()
    return states


def positions(state: LogitsState, seq_len: int) -> Index:
    """Position in its sequence of every token of a state."""
    found: Index = np.mod(state.table.indices("place"), seq_len)
    return found


def worst_tokens(
    state: LogitsState, corpus: Corpus, tokenizer: Tokenizer, seq_len: int, count: int
) -> list[dict[str, object]]:
    """The tokens of largest divergence as text."""
    rows: list[dict[str, object]] = []
    for row in logits_metric.worst(state, count):
        number, position = divmod(row["place"], seq_len)
        sequence = corpus.sequences[number]
        document = corpus.documents[sequence.document]
        context = sequence.tokens[max(0, position + 1 - CONTEXT_TOKENS) : position + 1]
        rows.append(
            {
                "lane": state.lane,
                "domain": document.domain,
                "document": document.id,
                "position": sequence.start + position + 1,
                "context": tokenizer.decode(context),
                "token": tokenizer.decode([row["target"]]),
                "base_top": tokenizer.decode([row["base_top"]]),
                "candidate_top": tokenizer.decode([row["candidate_top"]]),
                "kl": row["kl"],
            }
        )
    return rows

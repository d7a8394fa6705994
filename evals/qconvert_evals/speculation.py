"""Real speculative decoding on prompts from the documents, and teacher forcing on what it wrote.

A prompt is the beginning of a sequence. The lane continues it greedily with its own MTP head drafting; the loop's
counts are the "live" acceptance. Then the lane's trunk reads prompt and continuation once more, and acceptance is
teacher-forced on it (slice context=generated): both kinds must agree within their intervals, which ties the cheap
measurement to what an engine would do.

Generation needs all layers of a lane in memory at once, the only part of the comparison that does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from qconvert_evals.corpus import Batch, Corpus, Stretch
from qconvert_evals.drafting import force_generated
from qconvert_evals.metrics import live
from qconvert_evals.metrics.acceptance import AcceptanceState
from qconvert_evals.metrics.live import LiveState
from qconvert_reference.generation import generate_speculative
from qconvert_reference.lane import Lane

CONTEXT = "context=generated"


@dataclass(frozen=True)
class LiveSettings:
    """How many prompts, and how long prompts and continuations are."""

    prompts: int = 8
    prompt_tokens: int = 64
    new_tokens: int = 32


def choose_prompts(corpus: Corpus, settings: LiveSettings) -> list[Stretch]:
    """Sequences long enough for a prompt, domain by domain in turn, at most one a document."""
    by_domain: dict[str, list[Stretch]] = {}
    seen: set[int] = set()
    for one in corpus.sequences:
        if len(one.tokens) >= settings.prompt_tokens and one.document not in seen:
            seen.add(one.document)
            by_domain.setdefault(corpus.domains[one.document], []).append(one)
    rounds = max((len(one) for one in by_domain.values()), default=0)
    in_turn = [row[number] for number in range(rounds) for row in by_domain.values() if number < len(row)]
    return in_turn[: settings.prompts]


def measure(
    lane: Lane, corpus: Corpus, steps: int, settings: LiveSettings, tick: Callable[[], None]
) -> tuple[LiveState, AcceptanceState]:
    """Counts of the live loop, and acceptance forced on its output."""
    counted = LiveState(lane.name, corpus.domains, steps)
    forced = AcceptanceState(lane.name, corpus.domains, steps, CONTEXT)
    prompts = choose_prompts(corpus, settings)
    if not prompts:
        return counted, forced
    model = lane.model()
    written = []
    for prompt in prompts:
        start = prompt.tokens[: settings.prompt_tokens]
        output = generate_speculative(model, start, settings.new_tokens, draft_tokens=steps)
        live.update(counted, prompt.document, output.drafted, output.accepted)
        written.append([*start, *output.tokens])
        tick()
    if model.mtp is not None:
        tokens = torch.tensor(written).to(lane.device)
        lengths = torch.full((len(written),), tokens.shape[1])
        documents = torch.tensor([prompt.document for prompt in prompts])
        batch = Batch(tokens, lengths, documents, torch.arange(len(written))).to(lane.device)
        normed = model.forward(tokens).normed
        force_generated(lane, model.mtp, batch, normed, forced, settings.prompt_tokens)
    return counted, forced

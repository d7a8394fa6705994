"""Real speculative decoding on prompts from the documents, and teacher forcing on what it wrote.

A prompt is the beginning of a sequence. The lane continues it greedily with its own MTP head drafting; the loop's
counts are the "live" acceptance. Then the lane's trunk reads prompt and continuation once more, acceptance is
teacher-forced on it (slice context=generated), and its outcomes are laid beside the loop's at the loop's own anchors
(`metrics.replay`): they must be the same, which ties the cheap measurement to what an engine would do and finds a loop
that does not take back what it refused.

Generation needs all layers of a lane in memory at once, the only part of the comparison that does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qconvert_evals.corpus import Batch, Corpus, Stretch
from qconvert_evals.drafting import force_generated
from qconvert_evals.metrics import acceptance, live, replay
from qconvert_evals.metrics.acceptance import AcceptanceState
from qconvert_evals.metrics.found import Found
from qconvert_evals.metrics.live import LiveState
from qconvert_evals.metrics.replay import ReplayState
from qconvert_evals.sampling import Sampling
from qconvert_reference.generation import SpeculativeOutput, generate_speculative
from qconvert_reference.lane import Lane
from qconvert_reference.models.qwen3_next import Model

CONTEXT = "context=generated"


@dataclass(frozen=True)
class LiveSettings:
    """How many prompts, and how long prompts and continuations are."""

    prompts: int = 24
    prompt_tokens: int = 64
    new_tokens: int = 32


@dataclass(frozen=True)
class Observed:
    """What one lane's decoding showed."""

    live: LiveState
    forced: AcceptanceState
    replay: ReplayState

    def found(self) -> list[Found]:
        """All measurements."""
        return [live.result(self.live), acceptance.result(self.forced), replay.result(self.replay)]


def absent(lane: str, steps: int, why: str) -> list[Found]:
    """What a lane that did not decode cannot show."""
    return [live.absent(lane, steps, why), replay.absent(lane, steps, why)]


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
    lane: Lane, corpus: Corpus, steps: int, sampling: Sampling, settings: LiveSettings, tick: Callable[[], None]
) -> Observed:
    """Counts of the live loop, acceptance forced on its output, and the two side by side."""
    seen = Observed(
        LiveState(lane.name, corpus.domains, steps),
        AcceptanceState(lane.name, corpus.domains, steps, CONTEXT, sampling),
        ReplayState(lane.name, steps),
    )
    prompts = choose_prompts(corpus, settings)
    if not prompts:
        return seen
    model = lane.model()
    outputs = []
    for prompt in prompts:
        start = prompt.tokens[: settings.prompt_tokens]
        output = generate_speculative(model, start, settings.new_tokens, draft_tokens=steps)
        live.update(seen.live, prompt.document, output.drafted, output.accepted)
        outputs.append(output)
        tick()
    if model.mtp is not None:
        batch = _written(lane, prompts, outputs, settings.prompt_tokens)
        force_generated(lane, model.mtp, batch, _normed(model, batch.tokens), seen.forced, settings.prompt_tokens)
        lay_side_by_side(seen, prompts, outputs, settings.prompt_tokens)
    return seen


def _written(lane: Lane, prompts: Sequence[Stretch], outputs: Sequence[SpeculativeOutput], length: int) -> Batch:
    """Prompts and what followed, as sequences of one length."""
    rows = [[*prompt.tokens[:length], *output.tokens] for prompt, output in zip(prompts, outputs, strict=True)]
    tokens = torch.tensor(rows)
    lengths = torch.full((len(rows),), tokens.shape[1])
    documents = torch.tensor([prompt.document for prompt in prompts])
    return Batch(tokens, lengths, documents, torch.arange(len(rows))).to(lane.device)


def _normed(model: Model, tokens: Tensor) -> Tensor:
    """The trunk over tokens [B, T], without the logits of all positions at once: [B, T, H] behind the final norm."""
    hidden = model.embed(tokens)
    for layer in model.layers:
        hidden = layer(hidden).hidden
    return model.finish(hidden)


def lay_side_by_side(
    seen: Observed, prompts: Sequence[Stretch], outputs: Sequence[SpeculativeOutput], prompt_tokens: int
) -> None:
    """Each round of the loops beside the forced outcome at its anchor, into `seen.replay`.

    A round that began with w tokens written drafted behind position prompt_tokens + w - 2 of the text: the last token
    is the head's to read. Teacher forcing needs k further tokens behind an anchor, so rounds at the very end have none
    and are not compared; neither are rounds without a draft.
    """
    forced = _forced_runs(seen.forced)
    last = max((position for _, position in forced), default=-1)
    for prompt, output in zip(prompts, outputs, strict=True):
        anchors = [(one, prompt_tokens + one.written - 2) for one in output.rounds if one.drafts]
        held = [(one, forced[prompt.document, anchor]) for one, anchor in anchors if anchor <= last]
        drafts, kept = [one.drafts for one, _ in held], [one.kept for one, _ in held]
        replay.update(seen.replay, prompt.document, drafts, kept, [run for _, run in held])


def _forced_runs(state: AcceptanceState) -> dict[tuple[int, int], int]:
    """(document, position) of an anchor -> how many drafts in a row teacher forcing found right there."""
    runs = sum(state.table.numbers(f"greedy{step}") for step in range(1, state.steps + 1))
    keys = zip(state.table.indices("document").tolist(), state.table.indices("position").tolist(), strict=True)
    return dict(zip(keys, np.rint(runs).astype(int).tolist(), strict=True))

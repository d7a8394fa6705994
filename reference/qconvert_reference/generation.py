"""Greedy and sampled generation, plain and speculative with the MTP head; one sequence at a time.

Speculative step with k drafts d_1 .. d_k behind the last token: the trunk reads [last, d_1 .. d_k] and gives
distributions p_1 .. p_{k+1}.

    greedy     d_i is accepted while d_i = argmax p_i; then argmax of the next p is appended
    sampled    d_i ~ q_i is accepted with probability min(1, p_i(d_i) / q_i(d_i)); at the first refusal the token is
               drawn from max(p_i - q_i, 0), normalised; if all pass, from p_{k+1}. Every token then follows p.

Refused tokens are taken back: keys and values are cut, the delta rule returns to its recorded state, and the head reads
the accepted tokens again with the trunk's own hidden states.

Greedy output equals plain decoding bit for bit because the trunk reads the drafts `stepwise`: each layer walks through
them one at a time, with exactly the calls that plain decoding makes. A matrix product over k+1 rows would round
differently from one over a single row, and two nearly equal logits could then change places. So this loop measures
acceptance; it does not run faster.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from qconvert_reference.cache import Cache
from qconvert_reference.models.qwen3_next import Model


@dataclass(frozen=True)
class SpeculativeStep:
    """One round of the loop: tokens written when it drafted, drafts made, drafts that stayed."""

    written: int
    drafts: int
    kept: int


@dataclass
class SpeculativeOutput:
    """New tokens, and the rounds in which they were drafted and verified."""

    draft_tokens: int
    tokens: list[int] = field(default_factory=list)
    rounds: list[SpeculativeStep] = field(default_factory=list)

    @property
    def drafted(self) -> list[int]:
        """Drafts checked, by position: one is checked when all before it were accepted."""
        return [sum(one.drafts > at and one.kept >= at for one in self.rounds) for at in range(self.draft_tokens)]

    @property
    def accepted(self) -> list[int]:
        """Drafts accepted, by position."""
        return [sum(one.kept > at for one in self.rounds) for at in range(self.draft_tokens)]


@dataclass
class Sampler:
    """Turns logits into tokens: argmax at temperature 0, else a draw."""

    temperature: float = 0.0
    generator: torch.Generator | None = None

    def probabilities(self, logits: Tensor) -> Tensor:
        """Distribution over the vocabulary, fp64 [V]; all on the largest logit at temperature 0.

        It comes to the CPU, so that one generator draws the same tokens wherever the model runs.
        """
        logits = logits.cpu()
        if self.temperature == 0:
            return torch.zeros_like(logits, dtype=torch.float64).index_fill_(0, logits.argmax(), 1.0)
        return (logits.double() / self.temperature).softmax(-1)

    def draw(self, probabilities: Tensor) -> int:
        """A token from a distribution [V] (not necessarily normalised)."""
        if self.temperature == 0:
            return int(probabilities.argmax())
        return int(torch.multinomial(probabilities, 1, generator=self.generator))

    def accepts(self, token: int, target: Tensor, draft: Tensor) -> bool:
        """The rejection rule: yes with probability min(1, p / q)."""
        if self.temperature == 0:
            return bool(target[token] > 0)
        chance = torch.rand((), dtype=torch.float64, generator=self.generator)
        return bool(chance * draft[token] < target[token])


def generate(
    model: Model,
    prompt_tokens: list[int],
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[int]:
    """The new tokens, one trunk call each."""
    sampler, cache = Sampler(temperature, generator), Cache.empty(model.config)
    tokens: list[int] = []
    feed = prompt_tokens
    with torch.no_grad():
        while len(tokens) < max_new_tokens:
            logits = model.forward(_batch(model, feed), cache).logits[0, -1]
            feed = [sampler.draw(sampler.probabilities(logits))]
            tokens += feed
    return tokens


def generate_speculative(
    model: Model,
    prompt_tokens: list[int],
    max_new_tokens: int,
    *,
    draft_tokens: int,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> SpeculativeOutput:
    """The same tokens (greedy) or the same distribution (sampled) as `generate`, drafted by the MTP head."""
    sampler = Sampler(temperature, generator)
    output = SpeculativeOutput(draft_tokens)
    if max_new_tokens <= 0:
        return output
    with torch.no_grad():
        loop = _Speculation.begin(model, sampler, prompt_tokens, output)
        while len(output.tokens) < max_new_tokens:
            loop.step(min(draft_tokens, max_new_tokens - len(output.tokens) - 1))
    return output


@dataclass
class _Speculation:
    """State between two steps: the trunk has read all tokens but the last; `hidden` and `unread` wait for the head."""

    model: Model
    sampler: Sampler
    output: SpeculativeOutput
    cache: Cache
    hidden: Tensor  # [1, n, H], trunk output at the n positions behind the head's state
    unread: list[int] = field(default_factory=list)  # the token after each of them

    @classmethod
    def begin(cls, model: Model, sampler: Sampler, prompt: list[int], output: SpeculativeOutput) -> _Speculation:
        """Read the prompt and take the first token from it."""
        cache = Cache.empty(model.config)
        out = model.forward(_batch(model, prompt), cache)
        first = sampler.draw(sampler.probabilities(out.logits[0, -1]))
        output.tokens.append(first)
        return cls(model, sampler, output, cache, out.normed, [*prompt[1:], first])

    def step(self, drafts: int) -> None:
        """Draft, verify, accept, take back."""
        seen, last = self.cache.length, self.output.tokens[-1]
        tokens, sources = self._draft(drafts)
        self.cache.record()
        out = self.model.forward(_batch(self.model, [last, *tokens]), self.cache, stepwise=True)
        targets = [self.sampler.probabilities(row) for row in out.logits[0]]
        kept, following = accept(self.sampler, tokens, sources, targets)
        self.cache.rollback(seen + 1 + kept)
        self.hidden, self.unread = out.normed[:, : kept + 1], [*tokens[:kept], following]
        self.output.rounds.append(SpeculativeStep(len(self.output.tokens), len(tokens), kept))
        self.output.tokens += self.unread

    def _draft(self, count: int) -> tuple[list[int], list[Tensor]]:
        """`count` tokens and the distributions they were drawn from; the head then forgets all but true positions."""
        head = self.model.mtp
        if head is None:
            raise ValueError("this model was built without its multi-token-prediction head")
        start = self.cache.length - len(self.unread)
        true_length = self.cache.length
        tokens: list[int] = []
        sources: list[Tensor] = []
        hidden, following = self.hidden, self.unread
        for _ in range(max(count, 1)):  # the head reads the new true positions even when nothing is to be drafted
            hidden = head(_batch(self.model, following), hidden, self.cache.mtp, start).normed[:, -1:]
            start += len(following)
            sources.append(self.sampler.probabilities(self.model.logits(hidden)[0, -1]))
            tokens.append(self.sampler.draw(sources[-1]))
            following = tokens[-1:]
        self.cache.mtp.rollback(true_length)
        return tokens[:count], sources[:count]


def accept(sampler: Sampler, tokens: list[int], sources: list[Tensor], targets: list[Tensor]) -> tuple[int, int]:
    """How many of the drafts stay, and the token behind them.

    sources: q, what each draft was drawn from; targets: p, what the trunk says there, and one more behind them all.
    """
    for position, (token, source, target) in enumerate(zip(tokens, sources, targets[:-1], strict=True)):
        if not sampler.accepts(token, target, source):
            return position, sampler.draw(target if sampler.temperature == 0 else (target - source).clamp(min=0))
    return len(tokens), sampler.draw(targets[-1])


def _batch(model: Model, tokens: list[int]) -> Tensor:
    return torch.tensor([tokens], dtype=torch.long).to(model.embed.table.device)

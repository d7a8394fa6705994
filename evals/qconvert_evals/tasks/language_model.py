"""A lane as lm-eval sees a model: log-likelihoods, rolling log-likelihoods and outputs, from text.

What becomes of text is lm-eval's own rule, inherited from its `TemplateLM`: context and continuation are encoded
together and cut at the context's length, white space at the end of a context belongs to the continuation, an empty
context is one prefix token. What is too long loses its beginning (counted in `cut`); what cannot be run at all is
refused. Stop strings end the answer, not the thought before it, and are no part of either.

Left out: images, multi-token sequences of sampling settings that no task here uses; unknown settings are refused.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from qconvert.errors import UserError
from qconvert_evals.tasks import reasoning
from qconvert_evals.tasks.chat import ChatTemplate, find_template
from qconvert_evals.tasks.decoding import Row, Sampling, decode
from qconvert_evals.tasks.reasoning import CLOSE, Parsed
from qconvert_evals.tasks.scoring import Begin, Span, score
from qconvert_evals.tasks.series import Thought
from qconvert_evals.tasks.settings import TaskSettings
from qconvert_evals.tasks.tokenizing import TaskTokenizer
from qconvert_reference.lane import Lane

ANSWER_TOKENS = 256  # lm-eval's default where a task names no length
KNOWN_SETTINGS = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k"}


class LaneLM(TemplateLM):  # type: ignore[misc]  # lm-eval is untyped here
    """One lane; `thoughts` and `cut` (requests that lost their beginning) fill while it runs."""

    def __init__(self, lane: Lane, settings: TaskSettings, begin: Begin) -> None:
        super().__init__()
        folder = lane.weights.checkpoint.root
        self.lane, self.settings, self._begin = lane, settings, begin
        self.text = TaskTokenizer(folder)
        self.template: ChatTemplate | None = find_template(folder) if settings.apply_chat_template else None
        self.thoughts: list[Thought] = []
        self.cut = 0

    @property
    def max_length(self) -> int:
        """Tokens that the model was made for."""
        return self.lane.config.max_position_embeddings

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        return min(self.text.ends) if self.text.ends else self.text.prefix

    @property
    def prefix_token_id(self) -> int:
        """What stands in for an empty context."""
        return self.text.prefix

    @property
    def tokenizer_name(self) -> str:
        """Only a key of lm-eval's cache, which is not used."""
        return self.lane.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Text to tokens."""
        return self.text.encode_special(string, add_special_tokens)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages to text; `stage` has made sure that there is a template."""
        assert self.template is not None
        return self.template.render(chat_history, add_generation_prompt)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """As lm-eval encodes them."""
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return found

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        spans = [self._span(context, continuation) for _, context, continuation in requests]
        return [(one.log_likelihood, one.greedy) for one in score(self.lane, spans, self._begin)]

    def _span(self, context: Sequence[int], continuation: Sequence[int]) -> Span:
        if not context or not continuation or len(continuation) > self.max_length:
            raise UserError(
                "a task asks for a continuation that cannot be scored",
                expected=f"1 to {self.max_length} tokens behind at least one",
                found=f"{len(continuation)} behind {len(context)}: {self.text.decode(list(continuation))[:60]!r}",
            )
        tokens = (*context, *continuation)[-(self.max_length + 1) :]
        self.cut += len(context) + len(continuation) > len(tokens)
        return Span(tokens, len(continuation))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Every token of a text predicted once, in windows of the model's full length."""
        spans: list[Span] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            windows = get_rolling_token_windows(
                self.tok_encode(request.args[0]), self.prefix_token_id, self.max_length, context_len=1
            )
            for window in windows:
                spans.append(self._span(*make_disjoint_window(window)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, one in zip(owners, score(self.lane, spans, self._begin), strict=True):
            totals[owner] += one.log_likelihood
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Answers, their thoughts taken off."""
        seen: Counter[str] = Counter()
        prepared = [self._prepare(request, seen) for request in requests]
        tick = self._begin(f"answering, {self.lane.name}", len(prepared))
        with torch.inference_mode():
            decode(self._model, [row for row, _ in prepared], tick)
        return [self._answer(request, row, stops) for request, (row, stops) in zip(requests, prepared, strict=True)]

    @cached_property
    def _model(self) -> Any:
        return self.lane.model()

    def _prepare(self, request: Instance, seen: Counter[str]) -> tuple[Row, list[str]]:
        """The row to decode, and the strings that stop its answer."""
        prompt, given = request.args
        kwargs = normalize_gen_kwargs(given, ANSWER_TOKENS)
        unknown = sorted(set(kwargs) - KNOWN_SETTINGS)
        if unknown:
            raise UserError(
                f"task {request.task_name} sets {', '.join(unknown)}, which is not supported",
                expected=", ".join(sorted(KNOWN_SETTINGS)),
            )
        longest = self.settings.max_gen_toks or int(kwargs["max_gen_toks"])
        room = self.max_length - longest
        if room < 1:
            raise UserError(
                f"task {request.task_name} asks for answers as long as the model's context",
                expected=f"less than {self.max_length} tokens",
                found=str(longest),
                fix="give --max-gen-toks",
            )
        tokens = self.tok_encode(prompt)
        self.cut += len(tokens) > room
        stops = [one for one in kwargs["until"] if one] + [self.text.end_text]
        sampled = kwargs.get("do_sample") and float(kwargs.get("temperature", 0)) > 0
        sampling = Sampling(
            float(kwargs["temperature"]) if sampled else 0.0,
            float(kwargs.get("top_p", 1)),
            int(kwargs.get("top_k", 0)),
        )
        key = json.dumps([prompt, given], sort_keys=True, default=str)
        seen[key] += 1
        seed = int.from_bytes(hashlib.sha256(f"{seen[key]} {key}".encode()).digest()[:7], "big")
        tail = tokens[-room:]
        if not tail:
            tail = [self.prefix_token_id]
        return Row(tail, longest, self._stopper(prompt, stops), sampling, seed), stops

    def _stopper(self, prompt: str, stops: list[str]) -> Callable[[list[int]], bool]:
        """Whether an output ends here: at an end token, or at a stop string in its answer.

        A stop string or tag of n bytes lies within the last n tokens, so only those are turned into text.
        """
        parser, window = self.settings.reasoning_parser, max(len(one.encode()) for one in [*stops, CLOSE]) + 4
        phase, begin = reasoning.phase(parser, prompt, ""), 0

        def done(output: list[int]) -> bool:
            nonlocal phase, begin
            if output[-1] in self.text.ends:
                return True
            if phase == "undecided":
                phase = reasoning.phase(parser, prompt, self.text.visible(output))
            if phase == "thought" and CLOSE in self.text.visible(output[-window:]):
                phase, begin = "answer", len(output)
            first = max(begin, len(output) - window)
            tail = self.text.decode(output[first:])
            if begin == first > 0:
                tail = tail.lstrip()  # white space between thought and answer belongs to neither
            return phase == "answer" and any(one in tail for one in stops)

        return done

    def _answer(self, request: Instance, row: Row, stops: list[str]) -> str:
        parsed = self._parsed(request.args[0], row.output)
        if parsed.thought is not None:
            length = len(self.text.encode(parsed.thought))
            self.thoughts.append(Thought(request.task_name, request.doc_id, length, parsed.cut_off))
        answer = parsed.answer
        for stop in stops:
            answer = answer.split(stop)[0]
        return answer

    def _parsed(self, prompt: str, output: list[int]) -> Parsed:
        ends = [place for place, token in enumerate(output) if token in self.text.ends]
        return reasoning.parse(
            self.settings.reasoning_parser, prompt, self.text.visible(output[: ends[0]] if ends else output)
        )

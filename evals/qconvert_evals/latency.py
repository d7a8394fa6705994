"""How long a lane takes, and how much memory it holds, at each length of context.

    prefill    one forward over the whole context
    decode     one further token behind it
    verify     k + 1 further tokens at once, as speculative decoding checks k drafts
    draft      one call of the MTP head with its logits
    speed-up   tokens per step * decode / (verify + k * draft)

Tokens per step come from a real greedy loop behind the same context (see `qconvert_reference.generation`). That loop
reads drafts one by one to be exact, so it is not timed itself; the formula says what an engine gains that checks them
in one pass.

Lanes take turns round by round, so that a machine that slows down slows all of them; medians over rounds are kept. The
times are those of this reference on this machine: ratios between lengths and between lanes carry over, seconds do not.
On a CPU a quantized lane without `keep_dequantized` also pays for dequantizing at every call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor

from qconvert.errors import UserError
from qconvert.formats import open_weights
from qconvert_evals import statistics
from qconvert_evals.corpus import Tokenizer
from qconvert_evals.data import Document
from qconvert_evals.identity import check_comparable, choose_numerics
from qconvert_evals.lanes import check_length, open_lanes
from qconvert_evals.metrics.found import Found
from qconvert_evals.results import BASE_LANE, is_noise
from qconvert_evals.statistics import Estimate
from qconvert_reference.cache import AttentionState, Cache, DeltaState
from qconvert_reference.device import choose_device
from qconvert_reference.generation import generate_speculative
from qconvert_reference.lane import CPU, Lane
from qconvert_reference.models.qwen3_next import Model

Clock = Callable[[], float]
Out = TypeVar("Out")
NO_HEAD = "the checkpoint has no MTP head"


@dataclass(frozen=True)
class LatencySettings:
    """Lengths of context, drafts per step, tokens of the real loop, and timed rounds."""

    contexts: tuple[int, ...] = (128, 512, 2048)
    draft_tokens: int = 3
    new_tokens: int = 32
    rounds: int = 3


@dataclass
class Timings:
    """Seconds of one lane at one length, an entry a round; bytes of its cache; tokens per step of the real loop."""

    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)
    verify: list[float] = field(default_factory=list)
    draft: list[float] = field(default_factory=list)
    cache_bytes: int = 0
    tokens_per_step: float | None = None
    steps: int = 0


def run(
    base: Path,
    candidates: Mapping[str, Path],
    documents: Sequence[Document],
    settings: LatencySettings,
    progress: Callable[[str, int, int], None],
    device: str = "cpu",
    yarn: float | None = None,
) -> list[Found]:
    """Open the lanes, join the documents to one text that is long enough, and measure."""
    lanes = open_latency_lanes(base, candidates, choose_device(device), yarn)
    tokenizer = Tokenizer(base)
    tokens: list[int] = []
    for document in documents:
        tokens += tokenizer.encode(document.text)
        if len(tokens) >= max(settings.contexts):
            break
    total = ticks(len(lanes), settings)
    steps = count(1)
    return measure(lanes, tokens, settings, lambda: progress("latency", next(steps), total))


def open_latency_lanes(
    base: Path, candidates: Mapping[str, Path], device: torch.device = CPU, yarn: float | None = None
) -> list[Lane]:
    """The base alone, or with its candidates; a noise lane has no time of its own."""
    weights = open_weights(base)
    if not candidates:
        return [Lane.open(BASE_LANE, weights, choose_numerics(weights, device=device), device, yarn)]
    first, others = open_lanes(base, candidates, device=device, yarn=yarn)
    for other in others:
        check_comparable(first, other)
    return [first, *(other for other in others if not is_noise(other.name))]


def measure(
    lanes: Sequence[Lane],
    tokens: Sequence[int],
    settings: LatencySettings,
    tick: Callable[[], None] = lambda: None,
    clock: Clock = time.perf_counter,
) -> list[Found]:
    """All lanes over the first tokens of one text, all layers in memory at once."""
    longest = max(settings.contexts)
    if len(tokens) < longest:
        raise UserError(
            "the text is shorter than the longest context",
            expected=f"{longest:,} tokens or more",
            found=f"{len(tokens):,}",
            fix="give longer text with --data, or shorter --contexts",
        )
    for lane in lanes:
        check_length(lane, longest + settings.new_tokens)
    models = {lane.name: lane.model() for lane in lanes}
    all_found: dict[str, list[tuple[int, Timings]]] = {lane.name: [] for lane in lanes}
    with torch.inference_mode():
        for length in settings.contexts:
            found = {name: Timings() for name in models}
            for number in range(settings.rounds + 1):  # the first round warms caches and allocators up
                for name, model in models.items():
                    _time_round(model, list(tokens[:length]), settings, found[name], clock, keep=number > 0)
                    tick()
            for name, model in models.items():
                _speculate(model, list(tokens[:length]), settings, found[name])
                all_found[name] += [(length, found[name])]
    return [_result(lane, all_found[lane.name], settings) for lane in lanes]


def ticks(lanes: int, settings: LatencySettings) -> int:
    """How often `measure` calls tick."""
    return lanes * len(settings.contexts) * (settings.rounds + 1)


def _time_round(
    model: Model, tokens: list[int], settings: LatencySettings, found: Timings, clock: Clock, keep: bool
) -> None:
    """Each kind of call once behind the same context."""
    device = model.embed.table.device
    batch = torch.tensor([tokens]).to(device)  # [1, T]
    cache = Cache.empty(model.config)
    seconds, out = _timed(clock, device, lambda: model.forward(batch, cache))
    times = {"prefill": seconds}
    found.cache_bytes = sum(tensor.nbytes for tensor in cached_tensors(cache))
    for name, further in (("decode", batch[:, :1]), ("verify", batch[:, : settings.draft_tokens + 1])):
        cache.record()
        times[name], _ = _timed(clock, device, partial(model.forward, further, cache))
        cache.rollback(len(tokens))
    head = model.mtp
    if head is not None:
        head(batch.roll(-1, 1), out.normed, cache.mtp, 0)
        last, hidden = batch[:, -1:], out.normed[:, -1:]
        times["draft"], _ = _timed(
            clock, device, lambda: model.logits(head(last, hidden, cache.mtp, len(tokens)).normed[:, -1:])
        )
    if keep:
        for name, value in times.items():
            getattr(found, name).append(value)


def _timed(clock: Clock, device: torch.device, call: Callable[[], Out]) -> tuple[float, Out]:
    """Seconds of a call, waiting for the device before and after."""
    _wait(device)
    start = clock()
    result = call()
    _wait(device)
    return clock() - start, result


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cached_tensors(cache: Cache) -> Iterator[Tensor]:
    """Everything that a cache holds."""
    for state in (*cache.layers, cache.mtp):
        if isinstance(state, AttentionState):
            held = (state.keys, state.values)
        else:
            assert isinstance(state, DeltaState)
            held = (state.conv, state.recurrent)
        yield from (one for one in held if one is not None)


def _speculate(model: Model, tokens: list[int], settings: LatencySettings, found: Timings) -> None:
    """How many tokens a step of the real loop brings behind this context."""
    if model.mtp is None:
        return
    output = generate_speculative(model, tokens, settings.new_tokens, draft_tokens=settings.draft_tokens)
    found.steps = len(output.rounds)
    if len(output.rounds):
        found.tokens_per_step = (len(output.tokens) - 1) / len(output.rounds)  # the first token comes with the prompt


def speed_up(found: Timings, drafts: int) -> float | None:
    """Tokens per second with the MTP head over those without, for an engine that checks all drafts in one pass."""
    if found.tokens_per_step is None or not found.draft:
        return None
    step = median(found.verify) + drafts * median(found.draft)
    return found.tokens_per_step * median(found.decode) / step


def _result(lane: Lane, found: Sequence[tuple[int, Timings]], settings: LatencySettings) -> Found:
    result = Found(lane.name)
    for length, times in found:
        at, rounds = f"context={length}", settings.rounds
        gain = Estimate(speed_up(times, settings.draft_tokens), rounds)
        result.add("latency.prefill", at, "s", _middle(times.prefill))
        result.add("latency.prefill_speed", at, "tokens/s", Estimate(length / median(times.prefill), rounds))
        result.add("latency.decode", at, "s", _middle(times.decode))
        result.add("latency.verify", at, "s", _middle(times.verify))
        result.add("latency.draft", at, "s", _middle(times.draft), NO_HEAD)
        result.add("latency.tokens_per_step", at, "tokens", Estimate(times.tokens_per_step, times.steps), NO_HEAD)
        result.add("latency.mtp_speed_up", at, "ratio", gain, NO_HEAD)
        result.add("latency.cache_bytes", at, "bytes", statistics.exact(times.cache_bytes, 1))
    size = sum(info.nbytes for info in lane.weights.checkpoint.tensors.values())
    result.add("latency.weight_bytes", "all", "bytes", statistics.exact(size, len(lane.weights.checkpoint.tensors)))
    return result


def _middle(seconds: Sequence[float]) -> Estimate:
    """Median with the fastest and the slowest round as its interval."""
    if not seconds:
        return Estimate(None, 0)
    return Estimate(median(seconds), len(seconds), min(seconds), max(seconds))

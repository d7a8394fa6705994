"""Compare checkpoints: run all lanes over the same tokens and gather every measurement into one record.

Lanes: the base ("bf16"), the noise lane ("bf16-noise": the base's weights with another order of accumulation), and
the candidates by name. The noise lane is measured like a candidate; what it shows is what no difference in weights
can explain, and each candidate's measurement carries it as `noise_floor`. Stages, each in its own module:

    weight_errors   tensors against tensors             predictions   logits against logits
    trunk           layer by layer, in lockstep         drafting      MTP acceptance, teacher-forced
    speculation     MTP acceptance in a real loop       tasks.stage   benchmarks, where tasks are asked for

Judging is left out: `verdict` stays None, and reports/ fills it. Anything that could not be measured is in `missing`
with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import qconvert
from qconvert_evals import drafting, predictions, speculation, statistics, weight_errors
from qconvert_evals.corpus import Corpus, Tokenizer, make_corpus
from qconvert_evals.data import Document, load_documents
from qconvert_evals.identity import check_comparable, head_fault, lane_identity, machine
from qconvert_evals.lanes import check_length, open_lanes
from qconvert_evals.metrics import acceptance, hidden, logits, router
from qconvert_evals.metrics import live as live_metric
from qconvert_evals.metrics import weights as weights_metric
from qconvert_evals.metrics.found import Found
from qconvert_evals.metrics.weights import WeightState
from qconvert_evals.results import NOISE_LANE, Measurement, Results
from qconvert_evals.speculation import LiveSettings
from qconvert_evals.tasks.settings import TaskSettings
from qconvert_evals.tasks.stage import Benchmarks
from qconvert_evals.trunk import Track, run_trunk
from qconvert_reference.device import choose_device, describe, memory_for_weights
from qconvert_reference.lane import Lane
from qconvert_reference.threads import single_tokens

Progress = Callable[[str, int, int], None]  # stage, done, total

WORST = 20
LIVE = LiveSettings()
WORST_TABLES = {"weights_worst": weights_metric.worst, "weights_worst_blocks": weights_metric.worst_blocks}
LIVE_BYTES = 8 << 30  # weights of a model that may be held in a CPU's memory as a whole, for generation


@dataclass(frozen=True)
class Settings:
    """What is measured and how much of it."""

    tokens: int
    seq_len: int
    draft_tokens: int
    activations: str | None
    kernels: str
    device: torch.device
    yarn: float | None
    live: LiveSettings
    tasks: TaskSettings | None = None


def compare(
    base: str | Path,
    candidates: Mapping[str, str | Path],
    *,
    documents: Sequence[Document] | None = None,
    tokens: int = 16384,
    seq_len: int = 512,
    draft_tokens: int = 3,
    activations: str | None = None,
    kernels: str = "auto",
    device: str | torch.device = "cpu",
    yarn: float | None = None,
    live: LiveSettings = LIVE,
    tasks: TaskSettings | None = None,
    progress: Progress | None = None,
) -> Results:
    """Everything measured; UserError where the checkpoints cannot be compared.

    `documents` default to the package's texts. `activations` None means what each candidate's config.json asks for.
    """
    where = choose_device(device) if isinstance(device, str) else device
    settings = Settings(tokens, seq_len, draft_tokens, activations, kernels, where, yarn, live, tasks)
    comparison = _Comparison.open(Path(base), candidates, documents, settings, progress)
    with torch.inference_mode():
        comparison.run()
    return comparison.results()


class _Stages:
    """Turns ticks of one stage into calls of the caller's progress function."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress

    def begin(self, stage: str, total: int) -> Callable[[], None]:
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1
            if self._progress is not None:
                self._progress(stage, min(done, total), total)

        return tick


@dataclass
class _Comparison:
    """The lanes, the tokens, and what has been found so far."""

    settings: Settings
    base: Lane
    others: list[Lane]  # the noise lane, then the candidates
    corpus: Corpus
    tokenizer: Tokenizer
    stages: _Stages
    faults: dict[str, str]  # lane -> why it has no usable MTP head
    benchmarks: Benchmarks | None
    found: list[Found] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(
        cls,
        base: Path,
        candidates: Mapping[str, str | Path],
        documents: Sequence[Document] | None,
        settings: Settings,
        progress: Progress | None,
    ) -> _Comparison:
        """Open and check everything before anything is computed."""
        lane, others = open_lanes(
            base, candidates, settings.activations, settings.kernels, settings.device, settings.yarn
        )
        faults = {}
        for other in others:
            check_comparable(lane, other)
            fault = head_fault(lane.weights, other.weights)
            if fault is not None:
                faults[other.name] = fault
        tokenizer = Tokenizer(base)
        corpus = make_corpus(
            load_documents() if documents is None else documents,
            tokenizer.encode,
            tokens=settings.tokens,
            seq_len=settings.seq_len,
            vocab_size=lane.config.vocab_size,
        ).to(settings.device)
        check_length(lane, max(len(one.tokens) for one in corpus.sequences))
        large = next((why for one in (lane, *others) if (why := _too_large(one))), "")
        asked = settings.tasks
        tasks = None if asked is None else Benchmarks.prepare(asked, (lane, *others), large)
        return cls(settings, lane, others, corpus, tokenizer, _Stages(progress), faults, tasks)

    def run(self) -> None:
        """All stages."""
        self._weights()
        tracks = [Track.start(lane, self.corpus.batches, self.corpus.domains) for lane in (self.base, *self.others)]
        total = self.base.num_layers * len(tracks)
        run_trunk(tracks[0], tracks[1:], self.corpus.batches, self.stages.begin("layers", total))
        self._predictions(tracks[0], tracks[1:])
        self._drafts(tracks[0], tracks[1:])
        for track in tracks[1:]:
            self.found += [router.result(track.router), hidden.result(track.errors)]
        self._live()
        if self.benchmarks is not None:
            found, self.figures["tasks"] = self.benchmarks.run((self.base, *self.others), self.stages.begin)
            self.found += found

    def _weights(self) -> None:
        for lane in (self.base, *self.others):
            self.found.append(_sizes(lane))
        candidates = [lane for lane in self.others if lane.name != NOISE_LANE]
        tick = self.stages.begin("weights", sum(len(lane.weights.names) for lane in candidates))
        states = [WeightState(NOISE_LANE)]  # the base's own tensors: nothing is touched, nothing is missing
        states += [weight_errors.measure(lane.name, self.base.weights, lane.weights, tick) for lane in candidates]
        for state in states:
            self.found.append(weights_metric.result(state))
            for name, rows in WORST_TABLES.items():
                listed = [{"lane": state.lane, **row} for row in rows(state, WORST)]
                self.figures.setdefault(name, []).extend(listed)
            self.figures.setdefault("weights_kept_changed", {})[state.lane] = weights_metric.kept_changed(state)
            self.figures.setdefault("weights_missing", {})[state.lane] = state.missing
            self.figures.setdefault("weights_unloadable", {})[state.lane] = state.unloadable

    def _predictions(self, base: Track, others: list[Track]) -> None:
        seq_len, batches = self.settings.seq_len, self.corpus.batches
        states = predictions.measure(base, others, batches, seq_len, self.stages.begin("logits", len(batches)))
        self.found.append(logits.base_result(states[0], self.base.name))
        self.figures |= {"kl_histogram": {}, "position_kl": {}, "worst_tokens": []}
        for state in states:
            positions = predictions.positions(state, seq_len)
            self.found.append(logits.result(state, positions))
            self.figures["kl_histogram"][state.lane] = logits.histogram(state)
            self.figures["position_kl"][state.lane] = logits.by_position(state, positions)
            if state.lane != NOISE_LANE:
                worst = predictions.worst_tokens(state, self.corpus, self.tokenizer, seq_len, WORST)
                self.figures["worst_tokens"].extend(worst)

    def _drafts(self, base: Track, others: list[Track]) -> None:
        """Acceptance on the documents' text; a lane that lost its head is measured as missing, with the reason."""
        steps, able = self.settings.draft_tokens, [track for track in others if track.lane.name not in self.faults]
        tick = self.stages.begin("drafts", len(able) + 1)
        states = drafting.measure(base, able, self.corpus.batches, steps, tick)
        for lane in (self.base, *self.others):
            state = states.get(lane.name)
            if state is None:
                self.found.append(acceptance.absent(lane.name, steps, self._headless(lane)))
            else:
                against = None if lane is self.base else states.get(self.base.name)
                self.found.append(acceptance.result(state, against))

    def _live(self) -> None:
        settings, steps = self.settings.live, self.settings.draft_tokens
        lanes = (self.base, *self.others)
        tick = self.stages.begin("decoding", len(lanes) * len(speculation.choose_prompts(self.corpus, settings)))
        for lane in lanes:
            why = self._headless(lane) or _too_large(lane)
            if why:
                self.found.append(live_metric.absent(lane.name, steps, why))
                continue
            with single_tokens(lane.config):
                counted, forced = speculation.measure(lane, self.corpus, steps, settings, tick)
            self.found += [live_metric.result(counted), acceptance.result(forced)]

    def _headless(self, lane: Lane) -> str:
        """Why a lane cannot draft, "" if it can."""
        if lane.name in self.faults:
            return self.faults[lane.name]
        return "" if lane.has_mtp else "the checkpoint has no MTP head"

    def results(self) -> Results:
        """The record, noise floors filled in."""
        rows = [row for found in self.found for row in found.measurements]
        noise = {(row.name, row.slice): row.value for row in rows if row.lane == NOISE_LANE}
        reference = (self.base.name, NOISE_LANE)
        roles = {self.base.name: "base", NOISE_LANE: "noise"}
        return Results(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            tool=self._tool(),
            lanes=[lane_identity(lane, roles.get(lane.name, "candidate")) for lane in (self.base, *self.others)],
            measurements=[row if row.lane in reference else _with_floor(row, noise) for row in rows],
            missing=[row for found in self.found for row in found.missing],
            figures=self.figures,
        )

    def _tool(self) -> dict[str, Any]:
        settings, corpus = self.settings, self.corpus
        used = {one.document for one in corpus.sequences}
        return {
            "name": "qconvert",
            "version": qconvert.__version__,
            "tokens": corpus.tokens,
            "tokens_sha256": corpus.sha256,
            "documents": len(used),
            "sequences": len(corpus.sequences),
            "domains": sorted({corpus.domains[number] for number in used}),
            "seq_len": settings.seq_len,
            "draft_tokens": settings.draft_tokens,
            "device": describe(settings.device),
            "machine": machine(),
            "yarn": settings.yarn,
            "live": {name: getattr(settings.live, name) for name in ("prompts", "prompt_tokens", "new_tokens")},
        }


def _too_large(lane: Lane) -> str:
    """Why a lane cannot generate, "" if it can."""
    size, limit = _bytes(lane), memory_for_weights(lane.device, LIVE_BYTES)
    if size <= limit:
        return ""
    return f"generation needs all {size:,} bytes of weights in memory; the limit is {limit:,}"


def _bytes(lane: Lane) -> int:
    return sum(info.nbytes for info in lane.weights.checkpoint.tensors.values())


def _sizes(lane: Lane) -> Found:
    found = Found(lane.name)
    tensors = len(lane.weights.checkpoint.tensors)
    found.add("model.bytes", "all", "bytes", statistics.exact(_bytes(lane), tensors))
    return found


def _with_floor(row: Measurement, noise: Mapping[tuple[str, str], float | None]) -> Measurement:
    return replace(row, noise_floor=noise.get((row.name, row.slice)))

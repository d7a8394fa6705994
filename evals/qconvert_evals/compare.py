"""Compare checkpoints: run all lanes over the same tokens and gather every measurement into one record.

Lanes: the base ("bf16"), the candidates by name, and noise lanes (`lanes`: "bf16-noise", and "NAME-noise" for a kind
of candidate that rounds its activations). A noise lane is measured like a candidate, against the lane whose weights it
has; what it shows is what no difference in weights can explain, and each candidate's measurement carries that of its
kind as `noise_floor`. Stages, each in its own module:

    weight_errors   tensors against tensors             predictions   logits against logits
    trunk           layer by layer, in lockstep         drafting      MTP acceptance, teacher-forced
    speculation     MTP acceptance in a real loop       tasks.stage   benchmarks, where tasks are asked for

Judging is left out: `verdict` stays None, and reports/ fills it. Anything that could not be measured is in `missing`
with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import qconvert
from qconvert_evals import drafting, predictions, speculation, weight_errors
from qconvert_evals.corpus import Corpus, Tokenizer, make_corpus
from qconvert_evals.data import Document, load_documents
from qconvert_evals.identity import check_comparable, head_fault, identities, machine, model_figures
from qconvert_evals.lanes import check_length, noise_lanes, open_lanes, with_floors
from qconvert_evals.metrics import acceptance, hidden, logits, router
from qconvert_evals.metrics import weights as weights_metric
from qconvert_evals.metrics.found import Found
from qconvert_evals.metrics.weights import WeightState
from qconvert_evals.results import Results, is_noise, reference_of
from qconvert_evals.sampling import Sampling, read_sampling
from qconvert_evals.size import sizes, too_large
from qconvert_evals.speculation import LiveSettings
from qconvert_evals.tasks.settings import TaskSettings
from qconvert_evals.tasks.stage import Benchmarks
from qconvert_evals.trunk import Track, run_trunk, start_all
from qconvert_reference.device import choose_device, describe
from qconvert_reference.lane import Lane
from qconvert_reference.threads import single_tokens

Progress = Callable[[str, int, int], None]  # stage, done, total

WORST = 20
LIVE = LiveSettings()
WORST_TABLES = {"weights_worst": weights_metric.worst, "weights_worst_blocks": weights_metric.worst_blocks}


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
    keep: list[object] | None = None,
) -> Results:
    """Everything measured; UserError where the checkpoints cannot be compared.

    `documents` default to the package's texts. `activations` None means what each candidate's config.json asks for.
    `keep` gets the states of all metrics: numbers by token or by document, for whoever draws the documents anew.
    """
    where = choose_device(device) if isinstance(device, str) else device
    settings = Settings(tokens, seq_len, draft_tokens, activations, kernels, where, yarn, live, tasks)
    comparison = _Comparison.open(Path(base), candidates, documents, settings, progress)
    with torch.inference_mode():
        comparison.run()
    if keep is not None:
        keep += comparison.states
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
    others: list[Lane]  # BF16's noise lane, the candidates, their noise lanes
    corpus: Corpus
    tokenizer: Tokenizer
    stages: _Stages
    faults: dict[str, str]  # lane -> why it has no usable MTP head
    benchmarks: Benchmarks | None
    sampling: Sampling  # of the base's generation_config.json, for all lanes
    found: list[Found] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    states: list[object] = field(default_factory=list)  # of the metrics over tokens

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
        large = next((why for one in (lane, *others) if (why := too_large(one))), "")
        asked = settings.tasks
        tasks = None if asked is None else Benchmarks.prepare(asked, (lane, *others), large)
        sampling = read_sampling(lane.weights.checkpoint.root)
        return cls(settings, lane, others, corpus, tokenizer, _Stages(progress), faults, tasks, sampling)

    @property
    def candidates(self) -> list[Lane]:
        """Without the noise lanes."""
        return [lane for lane in self.others if not is_noise(lane.name)]

    def run(self) -> None:
        """All stages."""
        self._weights()
        tracks = start_all(self.base, self.others, self.corpus.batches, self.corpus.domains)
        total = self.base.num_layers * len(tracks)
        run_trunk(tracks, self.corpus.batches, self.stages.begin("layers", total))
        self._predictions(tracks[0], tracks[1:])
        self._drafts(tracks[0], tracks[1:])
        self.found.append(router.base_result(tracks[1].router, self.base.name))
        for track in tracks[1:]:
            self.states += [track.router, track.errors]
            self.found += [router.result(track.router), hidden.result(track.errors)]
        self._live()
        if self.benchmarks is not None:
            found, self.figures["tasks"] = self.benchmarks.run((self.base, *self.others), self.stages.begin)
            self.found += found

    def _weights(self) -> None:
        for lane in (self.base, *self.others):
            self.found.append(sizes(lane))
        tick = self.stages.begin("weights", sum(len(lane.weights.names) for lane in self.candidates))
        for lane in self.others:
            state = WeightState(lane.name)  # of a noise lane: the weights of another, nothing touched, nothing missing
            if not is_noise(lane.name):
                state = weight_errors.measure(lane.name, self.base.weights, lane.weights, tick)
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
        self.states += states
        self.found.append(logits.base_result(states[0], self.base.name))
        self.figures |= {"kl_histogram": {}, "position_kl": {}, "worst_tokens": []}
        for state in states:
            positions = predictions.positions(state, seq_len)
            self.found.append(logits.result(state, positions))
            self.figures["kl_histogram"][state.lane] = logits.histogram(state)
            self.figures["position_kl"][state.lane] = logits.by_position(state, positions)
            if not is_noise(state.lane):
                worst = predictions.worst_tokens(state, self.corpus, self.tokenizer, seq_len, WORST)
                self.figures["worst_tokens"].extend(worst)

    def _drafts(self, base: Track, others: list[Track]) -> None:
        """Acceptance on the documents' text; a lane that lost its head is measured as missing, with the reason."""
        steps, able = self.settings.draft_tokens, [track for track in others if track.lane.name not in self.faults]
        tick = self.stages.begin("drafts", len(able) + 1)
        states = drafting.measure(base, able, self.corpus.batches, steps, self.sampling, tick)
        self.states += states.values()
        for lane in (self.base, *self.others):
            state = states.get(lane.name)
            if state is None:
                self.found.append(acceptance.absent(lane.name, steps, self._headless(lane)))
            else:
                against = None if lane is self.base else states.get(reference_of(lane.name))
                self.found.append(acceptance.result(state, against))

    def _live(self) -> None:
        """Real decoding of every lane that is served; a noise lane's own text would be no floor for another's."""
        settings, steps = self.settings.live, self.settings.draft_tokens
        lanes = [self.base, *self.candidates]
        tick = self.stages.begin("decoding", len(lanes) * len(speculation.choose_prompts(self.corpus, settings)))
        for lane in lanes:
            why = self._headless(lane) or too_large(lane)
            if why:
                self.found += speculation.absent(lane.name, steps, why)
                continue
            with single_tokens(lane.config):
                seen = speculation.measure(lane, self.corpus, steps, self.sampling, settings, tick)
            self.states += [seen.live, seen.forced, seen.replay]
            self.found += seen.found()

    def _headless(self, lane: Lane) -> str:
        """Why a lane cannot draft, "" if it can."""
        if lane.name in self.faults:
            return self.faults[lane.name]
        return "" if lane.has_mtp else "the checkpoint has no MTP head"

    def results(self) -> Results:
        """The record, noise floors filled in."""
        rows = [row for found in self.found for row in found.measurements]
        noise = noise_lanes(self.candidates)
        return Results(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            tool=self._tool(),
            lanes=identities((self.base, *self.others), noise),
            measurements=with_floors(rows, noise),
            missing=[row for found in self.found for row in found.missing],
            figures={**self.figures, "model": model_figures(self.base)},
        )

    def _tool(self) -> dict[str, Any]:
        settings, corpus = self.settings, self.corpus
        used = {one.document for one in corpus.sequences}
        return {
            "name": "qconvert",
            "version": qconvert.__version__,
            "tokens": corpus.tokens,
            "tokens_asked": settings.tokens,
            "longest_sequence": max(len(one.tokens) for one in corpus.sequences),
            "tokens_sha256": corpus.sha256,
            "documents": len(used),
            "sequences": len(corpus.sequences),
            "domains": sorted({corpus.domains[number] for number in used}),
            "seq_len": settings.seq_len,
            "draft_tokens": settings.draft_tokens,
            "device": describe(settings.device),
            "machine": machine(),
            "yarn": settings.yarn,
            "sampling": self.sampling.record(),
            "live": {name: getattr(settings.live, name) for name in ("prompts", "prompt_tokens", "new_tokens")},
        }

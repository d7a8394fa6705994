"""Made-up results in the shape that `qconvert compare` writes, to test judging and rendering. No model, no torch.

The numbers are plausible (fp8: KL 0.003 nats, int4: ten times as much) and come from one seed.
"""

from __future__ import annotations

import random
from typing import Any

from qconvert_evals.results import LaneIdentity, Measurement, Missing, Results

QUANTILES = ("max", "p99_9", "p99", "p95", "p90", "median", "p10", "p5", "p1", "p0_1", "min")
MODEL = {"parameters": 79_674_391_296, "layers": 48, "experts": 512, "experts_chosen": 10, "context": 262_144}
DOMAINS = ("code", "math", "prose", "recall")
# Lane -> (scale of its drift, recipe's scheme, relative error of its weights).
LANES = {
    "bf16-noise": (0.02, "", 0.0),
    "fp8": (1.0, "fp8-block128", 0.0265),
    "int4": (10.0, "int4-g128", 0.118),
    "int4-awq": (8.0, "int4-g128", 0.121),
}


def synthetic_results(
    layers: int = 4,
    lanes: tuple[str, ...] = ("fp8",),
    steps: int = 3,
    seed: int = 7,
    domains: tuple[str, ...] = DOMAINS,
    stretches: tuple[str, ...] = (),
) -> Results:
    """A complete, healthy record: every family of measurements for every lane; `stretches` such as "0-127"."""
    made = _Maker(random.Random(seed), domains, stretches)
    made.base(steps)
    for lane in ("bf16-noise", *lanes):
        made.candidate(lane, layers, steps)
    names = ["bf16", "bf16-noise", *lanes]
    made.with_noise_floor()
    return Results(
        created="2026-01-02T03:04:05Z",
        tool={"name": "qconvert", "version": "0.1.0", "tokens": 20480, "seq_len": 512, "draft_tokens": steps},
        lanes=[_identity(name) for name in names],
        measurements=made.rows,
        missing=[Missing("bench.gsm8k", lane, "all", "no --tasks were asked for") for lane in lanes],
        figures={**_figures(random.Random(seed + 1), lanes), "model": dict(MODEL)},
    )


class _Maker:
    def __init__(self, source: random.Random, domains: tuple[str, ...], stretches: tuple[str, ...]) -> None:
        self.random = source
        self.domains, self.stretches = domains, stretches
        self.rows: list[Measurement] = []

    def add(
        self, name: str, lane: str, at: str, value: float, unit: str, half: float | None = None, n: int = 20480
    ) -> None:
        """`half` 0 is a number counted in full."""
        low, high = (None, None) if half is None else (value - half, value + half)
        self.rows.append(Measurement(name, lane, at, value, unit, n, low, high, exact=half == 0))

    def base(self, steps: int) -> None:
        for at in ("all", *(f"domain={one}" for one in self.domains)):
            self.add("logits.ppl", "bf16", at, 4.2 + self.random.random(), "ppl", 0.2)
        self.acceptance("bf16", steps, 0.0)

    def acceptance(self, lane: str, steps: int, drop: float) -> None:
        for step in range(1, steps + 1):
            for number, domain in enumerate(("", *self.domains)):
                at = f"position={step}" + (f",domain={domain}" if domain else "")
                value = 0.78 - 0.13 * (step - 1) - 0.03 * number - drop
                self.add("mtp.acceptance_greedy", lane, at, value, "fraction", 0.008, 9000)
                self.add("mtp.acceptance_sampled", lane, at, value - 0.02, "fraction", 0.007, 9000)
                self.add("mtp.acceptance_sampled_greedy_drafts", lane, at, value - 0.2, "fraction", 0.007, 9000)
        for number, stretch in enumerate(self.stretches):
            value = 0.78 + 0.01 * number - drop
            self.add("mtp.acceptance_greedy", lane, f"position=1,at={stretch}", value, "fraction", 0.01, 4000)
            self.add("mtp.accept_length", lane, f"at={stretch}", 2.31 + 0.02 * number - 3 * drop, "tokens", 0.04, 4000)
        self.add("mtp.accept_length", lane, "all", 2.31 - 3 * drop, "tokens", 0.03, 9000)
        self.add("mtp.acceptance_live", lane, "position=1", 0.77 - drop, "fraction", 0.02, 1200)
        self.add("mtp.accept_length_live", lane, "all", 2.5 - 3 * drop, "tokens", 0.1, 1200)
        self.add("mtp.live_replay_gap", lane, "position=1", 0.0, "fraction", 0.012, 1200)
        self.add("mtp.acceptance_greedy", lane, "position=1,context=generated", 0.78 - drop, "fraction", 0.02, 3000)

    def candidate(self, lane: str, layers: int, steps: int) -> None:
        drift, _, weight = LANES[lane]
        for at in ("all", *(f"domain={one}" for one in self.domains)):
            self.logits(lane, at, drift * (1 if at == "all" else 0.6 + 0.8 * self.random.random()))
        for number, stretch in enumerate(self.stretches):
            grown = drift * (1 + 0.1 * number)
            self.add("logits.kl_mean", lane, f"at={stretch}", 0.003 * grown, "nats", 0.0004 * grown, 4000)
            self.add("logits.ppl_ratio", lane, f"at={stretch}", 1 + 0.0015 * grown, "ratio", 0.001, 4000)
            self.add("logits.top1_agreement", lane, f"at={stretch}", 1 - 0.017 * grown**0.6, "fraction", 0.003, 4000)
        for layer in [*range(layers), "mtp"]:  # compare calls the MTP head's layer so
            for feed in ("local", "free"):
                self.router(lane, f"layer={layer},feed={feed}", drift * (1 if feed == "local" else 1.3))
        for feed in ("local", "free"):
            for at in ("", *(f"domain={one}," for one in self.domains)):
                self.router(lane, f"{at}feed={feed}", drift * (1 if feed == "local" else 1.8))
        self.acceptance(lane, steps, 0.0004 * drift)
        if weight:
            self.add("weights.relative_error", lane, "all", weight, "ratio", 0.0, 96)
            self.add("weights.relative_error_max", lane, "all", 1.05 * weight, "ratio", 0.0, 96)
            self.add("weights.block_error_max", lane, "all", 1.2 * weight, "ratio", 0.0, 96)
            for name in ("kept_changed", "missing_tensors", "unloadable"):
                self.add(f"weights.{name}", lane, "all", 0.0, "count", 0.0, 96)
            self.add("weights.sqnr_db", lane, "all", 31.5, "dB", 0.0, 96)

    def logits(self, lane: str, at: str, drift: float) -> None:
        if at == "all":
            self.add("logits.nonfinite_tokens", lane, at, 0.0, "tokens", 0.0)
        self.add("logits.kl_mean", lane, at, 0.003 * drift, "nats", 0.0003 * drift)
        for power, quantile in zip(range(3, -8, -1), QUANTILES, strict=True):
            self.add(f"logits.kl_{quantile}", lane, at, 0.002 * drift * 2.0**power, "nats", 0.0001 * drift * 2.0**power)
        self.add("logits.top1_agreement", lane, at, 1 - 0.017 * drift**0.6, "fraction", 0.002)
        self.add("logits.top5_overlap", lane, at, 1 - 0.03 * drift**0.6, "fraction", 0.002)
        self.add("logits.ppl", lane, at, 4.3 + 0.01 * drift, "ppl", 0.2)
        self.add("logits.ppl_ratio", lane, at, 1 + 0.002 * drift, "ratio", 0.0008)
        self.add("logits.dp_mean", lane, at, -0.0004 * drift, "fraction", 0.0002)
        self.add("logits.dp_rms", lane, at, 0.014 * drift**0.5, "fraction", 0.0004)

    def router(self, lane: str, at: str, drift: float) -> None:
        wobble = drift * (0.8 + 0.4 * self.random.random())
        self.add("router.set_match", lane, at, max(0.02, 1 - 0.06 * wobble**0.6), "fraction", 0.004)
        self.add("router.topk_overlap", lane, at, max(0.3, 1 - 0.012 * wobble**0.6), "fraction", 0.002)
        self.add("router.top1_match", lane, at, max(0.3, 1 - 0.015 * wobble**0.6), "fraction", 0.002)
        self.add("router.kl", lane, at, 0.0008 * wobble, "nats", 0.0001)
        self.add("hidden.relative_error", lane, at, 0.02 * wobble**0.5, "ratio", 0.001)

    def with_noise_floor(self) -> None:
        noise = {(one.name, one.slice): one.value for one in self.rows if one.lane == "bf16-noise"}
        self.rows = [
            Measurement(**{**vars(one), "noise_floor": noise.get((one.name, one.slice))})
            if not one.lane.startswith("bf16")
            else one
            for one in self.rows
        ]


def _identity(name: str) -> LaneIdentity:
    role = {"bf16": "base", "bf16-noise": "noise"}.get(name, "candidate")
    source = "bf16" if name == "bf16-noise" else name
    return LaneIdentity(
        name=name,
        role=role,
        path=f"models/Qwen3-Next-tiny-{source.upper()}",
        revision=None,
        files={"config.json": source[0] * 64, "model-00001-of-00001.safetensors": source[-1] * 64},
        recipe={"scheme": LANES[name][1], "scales": "bf16"} if role == "candidate" else {},
        numerics={"compute_dtype": "bfloat16", "accumulation": "split" if role == "noise" else "plain"},
        versions={"torch": "2.13.0", "qconvert": "0.1.0"},
        noise_lane="bf16-noise" if role == "candidate" else None,
    )


def _figures(source: random.Random, lanes: tuple[str, ...]) -> dict[str, Any]:
    edges = [10 ** (-8 + 0.25 * step) for step in range(41)]
    histograms = {}
    for lane in ("bf16-noise", *lanes):
        middle = {"bf16-noise": 9, "fp8": 18, "int4": 23, "int4-awq": 22}[lane]
        counts = [int(3000 * 2.718 ** (-((step - middle) ** 2) / 30)) for step in range(40)]
        histograms[lane] = {"edges": edges, "counts": counts}
    words = ["return ", "the ", "sum", " = ", "def ", "import ", "and then ", "42", "\n", "self."]
    worst = [
        {
            "lane": lane,
            "domain": source.choice(DOMAINS),
            "document": f"{source.choice(DOMAINS)}/{source.randrange(90):03d}",
            "position": source.randrange(500),
            "context": "".join(source.choice(words) for _ in range(14)),
            "token": source.choice(words),
            "base_top": source.choice(words),
            "candidate_top": source.choice(words),
            "kl": round(3.1 / (rank + 1), 4),
        }
        for lane in lanes
        for rank in range(12)
    ]
    tensors = [
        {
            "lane": lane,
            "tensor": f"model.layers.{rank % 4}.mlp.experts.{rank}.{source.choice(['gate', 'up', 'down'])}_proj.weight",
            "relative_error": LANES[lane][2] * (1.05 - 0.002 * rank),
            "sqnr_db": 31.1 + 0.02 * rank,
        }
        for lane in lanes
        for rank in range(20)
    ]
    along = {
        lane: [
            {
                "first": 2**power // 2,
                "last": max(0, 2**power - 1),
                "n": 100,
                "kl_mean": 0.003 * LANES[lane][0] * (1 + power / 9),
            }
            for power in range(10)
        ]
        for lane in histograms
    }
    return {"kl_histogram": histograms, "position_kl": along, "worst_tokens": worst, "weights_worst": tensors}

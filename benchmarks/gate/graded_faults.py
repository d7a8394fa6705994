"""Five faults with a strength, and the smallest strength that the gate fails four times in five.

Each is put into the FP8 lane of the shipped model behind all checks of its files, where only what tokens show can find
it. Noise is normal, and relative to what it is added to, token by token:

    layers    noise on the hidden states behind every layer          router   noise on the router's logits
    head      noise on what enters the MTP head's layer               gain     one layer's output times 1 + strength
    tokens    this share of positions predicts from the state of the position before

All strengths of all faults run as lanes of one comparison. P(FAIL) of each is counted over draws of its documents; the
detection limit is bisected between the last strength below AIM and the first that reaches it, and confirmed by a
comparison of its own, whose share is what is published. Faults of weights need no such search: the rows
on weights are counted in full, so the limit is the bound (a block's scale off by 6.3%, any change of a kept tensor).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.gate.judging import Gate, Outcomes
from qconvert_evals import compare as comparison
from qconvert_evals.results import Results
from qconvert_evals.speculation import LiveSettings
from qconvert_reference import moe
from qconvert_reference.lane import Lane
from qconvert_reports.budget import Budget

CAUGHT = 0.8
AIM = 0.85  # what the search asks for, so that the confirmed share is not below CAUGHT by luck
COARSE = 8  # the search draws as many times less often than the confirmation
ROUNDS = 3  # halvings of the ratio between the limit and the strength below it
TRIES = 4
STEP = 1.05  # a limit that is not confirmed grows by this factor
GAINED = 2  # the layer of `gain`


def _like(x: Tensor, strength: float, seed: int) -> Tensor:
    """x [..., n] plus noise of `strength` times its root mean square over the last dimension."""
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    size = x.float().square().mean(-1, keepdim=True).sqrt()
    return (x.float() + strength * size * noise).to(x.dtype)


def _each_layer(lane: Lane, change: Callable[[int, Any, tuple[Any, ...]], Any]) -> None:
    """Layers of the lane go through `change(index, layer, arguments)` from now on."""
    build = lane.layer

    def built(index: int) -> Any:
        layer = build(index)
        return lambda *args: change(index, layer, args)

    lane.layer = built  # type: ignore[method-assign]


def layers(lane: Lane, strength: float) -> None:
    """Noise behind every layer."""

    def change(index: int, layer: Any, args: tuple[Any, ...]) -> Any:
        out = layer(*args)
        return out._replace(hidden=_like(out.hidden, strength, index))

    _each_layer(lane, change)


def router(lane: Lane, strength: float) -> None:
    """Noise on the router's logits, of `strength` times their spread over the experts."""
    right = moe.route

    def change(index: int, layer: Any, args: tuple[Any, ...]) -> Any:
        def noisy(logits: Tensor, top_k: int, normalise: bool) -> Any:
            middle = logits.float().mean(-1, keepdim=True)
            return right(middle + _like(logits.float() - middle, strength, index), top_k, normalise)

        with patch.object(moe, "route", noisy):
            return layer(*args)

    _each_layer(lane, change)


def head(lane: Lane, strength: float) -> None:
    """Noise on what enters the MTP head's layer."""
    build = lane.mtp

    def noisy() -> Any:
        made = build()
        assert made is not None
        right = made.fc
        made.fc = lambda x: _like(right(x), strength, 1)  # type: ignore[assignment]
        return made

    lane.mtp = noisy  # type: ignore[method-assign]


def gain(lane: Lane, strength: float) -> None:
    """One layer too loud."""

    def change(index: int, layer: Any, args: tuple[Any, ...]) -> Any:
        out = layer(*args)
        return out._replace(hidden=out.hidden * (1 + strength)) if index == GAINED else out

    _each_layer(lane, change)


def tokens(lane: Lane, strength: float) -> None:
    """Some positions predict from the position before."""
    right = lane.finish

    def stale(hidden: Tensor) -> Tensor:
        normed = right(hidden)
        hit = torch.rand(normed.shape[:2], generator=torch.Generator().manual_seed(2)) < strength
        hit[:, 0] = False
        return torch.where(hit[..., None], normed.roll(1, 1), normed)

    lane.finish = stale  # type: ignore[method-assign]


@dataclass(frozen=True)
class Fault:
    """What it does, and strengths around its limit."""

    put: Callable[[Lane, float], None]
    what: str
    strengths: tuple[float, ...]


FAULTS = {
    "layers": Fault(layers, "noise behind every layer, relative to the hidden state", (0.04, 0.05, 0.06)),
    "router": Fault(router, "noise on the router's logits, relative to their spread", (0.05, 0.06, 0.07)),
    "head": Fault(head, "noise on the input of the MTP head's layer, relative", (0.1, 0.14, 0.2)),
    "gain": Fault(gain, f"output of layer {GAINED} too large by this share", (0.05, 0.06, 0.07)),
    "tokens": Fault(tokens, "share of positions that predict from the state of the position before",
                    (0.003, 0.0045, 0.006)),
}  # fmt: skip


@dataclass
class Search:
    """Shares of FAIL by strength, and the limit with its confirmation."""

    shares: dict[float, float] = field(default_factory=dict)
    limit: float = math.nan
    confirmed: Outcomes = field(default_factory=Outcomes)
    value: float | None = None  # of the row that catches it, at the limit
    clean: float | None = None  # of the same row without the fault


def search(
    base: Path, folder: Path, budget: Budget, size: int, draws: int, seed: int, workers: int
) -> dict[str, Search]:
    """Every fault's detection limit in an FP8 conversion, over `draws` draws of about `size` tokens."""
    found = {name: Search() for name in FAULTS}

    def look(asked: Sequence[tuple[str, float]], runs: int, seed: int) -> None:
        outcomes_by, results = _outcomes(base, folder, budget, size, runs, seed, asked, workers)
        for (name, strength), outcomes in outcomes_by.items():
            one = found[name]
            one.shares[strength], one.limit, one.confirmed = outcomes.share("fail"), strength, outcomes
            one.value, one.clean = _caught(outcomes, results, _lane(name, strength))

    coarse = max(1, draws // COARSE)
    look([(name, one) for name, fault in FAULTS.items() for one in fault.strengths], coarse, seed)
    for number in range(ROUNDS):
        look([(name, middle(one.shares)) for name, one in found.items()], coarse, seed + 1 + number)
    asked = {name: limit(one.shares) for name, one in found.items()}
    for number in range(TRIES):
        look(list(asked.items()), draws, seed + 1 + ROUNDS + number)
        asked = {name: STEP * found[name].limit for name in asked if found[name].confirmed.share("fail") < CAUGHT}
        if not asked:
            return found
    raise SystemExit(f"not caught {CAUGHT:.0%} of the time: {', '.join(asked)}; give larger strengths")


def limit(shares: Mapping[float, float]) -> float:
    """The smallest strength that reached AIM, the largest looked at where none did."""
    return min((strength for strength, share in shares.items() if share >= AIM), default=max(shares))


def middle(shares: Mapping[float, float]) -> float:
    """Where to look next: between the limit so far and the next weaker strength, at equal ratios."""
    high = limit(shares)
    low = max((strength for strength in shares if strength < high), default=high / 2)
    return math.sqrt(low * high)


def catching(outcomes: Outcomes) -> dict[str, Any]:
    """The row that fails most often."""
    return max(outcomes.row_shares(), key=lambda row: float(str(row["fail"])))


def _caught(outcomes: Outcomes, results: Results, lane: str) -> tuple[float | None, float | None]:
    row = catching(outcomes)
    name, at = str(row["measurement"]), str(row["slice"])
    paired = f"{name}_difference"
    values = []
    for one in (lane, "fp8"):
        rows = [results.find(each, one, at) for each in (paired, name)]
        values.append(next((each.value for each in rows if each is not None), None))
    return values[0], values[1]


def _lane(name: str, strength: float) -> str:
    return f"fp8-{name}-{strength:.6g}"


def _outcomes(
    base: Path,
    folder: Path,
    budget: Budget,
    size: int,
    draws: int,
    seed: int,
    asked: Sequence[tuple[str, float]],
    workers: int = 1,
) -> tuple[dict[tuple[str, float], Outcomes], Results]:
    """One comparison with a lane for each fault and strength, then the draws of each."""
    faults = {_lane(name, strength): (FAULTS[name].put, strength) for name, strength in asked}
    opened = comparison._Comparison.open

    def open_faulty(*args: Any) -> comparison._Comparison:
        made = opened(*args)
        for lane in made.others:
            if lane.name in faults:
                put, strength = faults[lane.name]
                put(lane, strength)
        return made

    states: list[object] = []
    with patch.object(comparison._Comparison, "open", open_faulty):
        folders = dict.fromkeys(("fp8", *faults), folder)
        results = comparison.compare(base, folders, tokens=size, live=LiveSettings(prompts=0), keep=states)
    found = {}
    for name, strength in asked:
        found[name, strength] = Gate(results, states, _lane(name, strength), budget).outcomes(draws, seed, workers)
    return found, results

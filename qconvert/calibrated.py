"""Quantizing with calibration: what a plan says about it, and one weight after the other with what its inputs were.

    imatrix   scales by least squared error, each input weighted with its mean square
    gptq      the same with its root mean square, then codes by `schemes.int4.gptq`

The root, because mean squares leave a group's scale to its few most active inputs, whose errors the sweep can pass on
as well as any: measured, models are better by 1 to 4% (design note).

Never silent: what cannot be done as asked falls back to the next simpler method (gptq, imatrix, mse), by tensor, with
the reason in the report. gptq is also refused where it does not lower the output error on its own moments.
"""

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qconvert.calibration import DEFAULT_TOKENS, Inputs, Request, Walk, WalkProgress, find_calibration
from qconvert.errors import UserError
from qconvert.schemes import QuantizedWeight
from qconvert.schemes.int4 import WEIGHTED, Int4, gptq

KEY = "calibration"  # in a plan's recipe
# Below it, the statistics of an expert are more its layer's than its own.
DEFAULT_MIN_TOKENS = int(gptq.PRIOR_TOKENS)
RECENT = 4  # inputs whose statistics are kept for the next weight: those of q, k and v, of gate and up
NEVER_ACTIVE = "its inputs were zero or not finite on the calibration text: mse"
NOT_BETTER = "gptq did not lower the output error on the calibration text: imatrix"
NO_FACTOR = "its Hessian cannot be factorised: imatrix"
UNSEEN = "no token was routed to it: moments of its layer's tokens"


def calibration_settings(
    folder: Path, method: str | None, source: str | None, tokens: int | None, min_tokens: int | None
) -> dict[str, Any]:
    """What a recipe says about calibration, empty without one. Chooses the tokens; refuses what does not fit."""
    if method not in WEIGHTED:
        given = {"--calibration": source, "--calibration-tokens": tokens, "--min-tokens": min_tokens}
        unused = [flag for flag, value in given.items() if value is not None]
        if unused:
            raise UserError(
                f"{unused[0]} is of no use: this method looks at no text",
                found=f"--method {method or 'not given'}",
                fix=f"leave it out, or give --method {' or '.join(WEIGHTED)}",
            )
        return {}
    if source is None:
        raise UserError(
            f"--method {method} needs a text to run the model on",
            expected="--calibration FILE.txt, FILE.jsonl or a data set of the hub",
            fix="give one that resembles what the model will serve, and not the one that `compare` measures on",
        )
    asked = DEFAULT_TOKENS if tokens is None else tokens
    text = find_calibration()(folder, Request(source, asked))
    return {
        KEY: {**text.identity, "asked": asked},
        "min_tokens": DEFAULT_MIN_TOKENS if min_tokens is None else min_tokens,
    }


def open_walk(folder: Path, recipe: Mapping[str, Any], names: list[str], workers: int, progress: WalkProgress) -> Walk:
    """The walk over the tokens that a recipe names; refuses if the text is another one by now."""
    planned = recipe[KEY]
    text = find_calibration()(folder, Request(planned["source"], planned["asked"], planned["seq_len"]))
    if text.identity["sha256"] != planned["sha256"]:
        raise UserError(
            "the calibration text changed since the plan was made", where=planned["source"], fix="run it again"
        )
    return text.walk(names, workers, progress)


@dataclass(frozen=True)
class Outcome:
    """A quantized weight, how it was made in the end, and on what."""

    numbers: QuantizedWeight
    method: str
    tokens: int
    note: str = ""


class Statistics:
    """Moments and factor of one input, made when first asked for, whoever asks. Weights of one input share it."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self._lock = threading.Lock()
        self._importance: Tensor | None = None
        self._hessian: Tensor | None = None
        self._factor: gptq.Factor | None = None

    def importance(self) -> Tensor:
        """Mean squares, fp64 [K]; no Hessian is made for them."""
        with self._lock:
            if self._importance is None:
                self._importance = gptq.mixed(self.inputs.importance())
            return self._importance

    def hessian(self) -> Tensor:
        """Second moments, fp64 [K, K]."""
        with self._lock:
            if self._hessian is None:
                self._hessian = gptq.estimate(self.inputs.hessian())
            return self._hessian

    def factor(self) -> gptq.Factor:
        """Of the Hessian; raises NotFactorised."""
        hessian = self.hessian()
        with self._lock:
            if self._factor is None:
                self._factor = gptq.factorise(hessian)
            return self._factor


class Calibrated:
    """Hands out statistics in the order of the plan, and quantizes with them."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._recent: deque[Statistics] = deque(maxlen=RECENT)

    def take(self, name: str) -> Statistics:
        """For the next weight of the plan. One caller at a time; valid as long as it is held."""
        inputs = self._walk.inputs(name)
        for statistics in self._recent:
            if statistics.inputs is inputs:
                return statistics
        self._recent.append(Statistics(inputs))
        return self._recent[-1]


def quantize_calibrated(weight: Tensor, scheme: Int4, statistics: Statistics) -> Outcome:
    """A whole weight [N, K], by the scheme's method or the next simpler one that works."""
    tokens = statistics.inputs.tokens
    note = "" if tokens else UNSEEN
    hessian = statistics.hessian() if scheme.method == "gptq" else None
    importance = statistics.importance() if hessian is None else hessian.diagonal()
    if not (bool(torch.isfinite(importance).all()) and float(importance.sum()) > 0):
        return Outcome(_by(scheme, "mse").quantize(weight), "mse", tokens, NEVER_ACTIVE)
    plain = _by(scheme, "imatrix").quantize(weight, importance)
    if hessian is None:
        return Outcome(plain, "imatrix", tokens, note)
    try:
        factor = statistics.factor()
    except gptq.NotFactorised:
        return Outcome(plain, "imatrix", tokens, NO_FACTOR)
    moved = gptq.improve(weight, scheme.quantize(weight, importance.sqrt()), factor)
    if gptq.output_error(weight, moved, hessian) > gptq.output_error(weight, plain, hessian):
        return Outcome(plain, "imatrix", tokens, NOT_BETTER)
    return Outcome(moved, "gptq", tokens, note)


def _by(scheme: Int4, method: str) -> Int4:
    return replace(scheme, method=method)

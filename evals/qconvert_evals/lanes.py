"""Opening the lanes of a comparison: the base, its noise lane, and the candidates by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from qconvert.errors import UserError
from qconvert.formats import open_weights
from qconvert_evals.identity import choose_numerics
from qconvert_evals.results import BASE_LANE, NOISE_LANE
from qconvert_reference.lane import CPU, Lane


def open_lanes(
    base: Path,
    candidates: Mapping[str, str | Path],
    activations: str | None = None,
    kernels: str = "auto",
    device: torch.device = CPU,
    yarn: float | None = None,
) -> tuple[Lane, list[Lane]]:
    """The base, and the noise lane followed by the candidates, all on one device; `activations` None is what each
    config.json asks for, `kernels` who computes the products of quantized weights, `yarn` the factor by which all of
    them stretch their context."""
    taken = sorted({BASE_LANE, NOISE_LANE} & set(candidates))
    if taken:
        raise UserError(f"a candidate cannot be called {taken[0]}", fix="choose another NAME")
    if not candidates:
        raise UserError("there is nothing to compare with", fix="give --fp8 DST, --int4 DST or --candidate NAME=PATH")
    weights = open_weights(base)
    if weights.quantized:
        raise UserError("the base of a comparison is quantized itself", where=str(base), expected="a BF16 checkpoint")
    numerics = choose_numerics(weights, kernels=kernels, device=device)
    lane = Lane.open(BASE_LANE, weights, numerics, device, yarn)
    others = [Lane.open(NOISE_LANE, weights, replace(numerics, accumulation="split"), device, yarn)]
    for name, path in candidates.items():
        opened = open_weights(Path(path))
        numerics = choose_numerics(opened, activations=activations, kernels=kernels, device=device)
        others.append(Lane.open(name, opened, numerics, device, yarn))
    return lane, others


def check_length(lane: Lane, tokens: int) -> None:
    """UserError where a sequence is longer than the lane's context: positions beyond it were never trained."""
    longest = lane.config.max_position_embeddings
    if tokens > longest:
        raise UserError(
            "a sequence is longer than the model's context",
            where=str(lane.weights.checkpoint.root / "config.json"),
            expected=f"max_position_embeddings = {longest:,} tokens or fewer",
            found=f"{tokens:,}",
            fix=f"take shorter sequences, or stretch the context as engines do, with --yarn {-(-tokens // longest)}",
        )

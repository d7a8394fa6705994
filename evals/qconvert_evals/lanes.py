"""Opening the lanes of a comparison: the base, the candidates by name, and a noise lane for each way of rounding.

A noise lane has the numbers of the lane it is named after and adds them in another order; the difference of the two is
what no difference in weights can explain. BF16's own serves every candidate whose activations stay in BF16, weight-only
ones included. Inputs rounded to eight bits multiply it: a last bit that differs may fall to another code. So the first
candidate of each such kind gets a noise lane, and later ones of that kind share it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from qconvert.errors import UserError
from qconvert.formats import open_weights
from qconvert_evals.identity import choose_numerics
from qconvert_evals.results import BASE_LANE, NOISE_LANE, NOISE_SUFFIX, Measurement, is_noise
from qconvert_reference.lane import CPU, Lane


def open_lanes(
    base: Path,
    candidates: Mapping[str, str | Path],
    activations: str | None = None,
    kernels: str = "auto",
    device: torch.device = CPU,
    yarn: float | None = None,
) -> tuple[Lane, list[Lane]]:
    """The base; and its noise lane, the candidates, and their noise lanes, all on one device. `activations` None is
    what each config.json asks for, `kernels` who computes the products of quantized weights, `yarn` the factor by which
    all of them stretch their context."""
    taken = sorted(name for name in candidates if name == BASE_LANE or is_noise(name))
    if taken:
        raise UserError(f"a candidate cannot be called {taken[0]}", fix="choose another NAME")
    if not candidates:
        raise UserError("there is nothing to compare with", fix="give --fp8 DST, --int4 DST or --candidate NAME=PATH")
    weights = open_weights(base)
    if weights.quantized:
        raise UserError("the base of a comparison is quantized itself", where=str(base), expected="a BF16 checkpoint")
    numerics = choose_numerics(weights, kernels=kernels, device=device)
    lane = Lane.open(BASE_LANE, weights, numerics, device, yarn)
    compared: list[Lane] = []
    for name, path in candidates.items():
        opened = open_weights(Path(path))
        numerics = choose_numerics(opened, activations=activations, kernels=kernels, device=device)
        compared.append(Lane.open(name, opened, numerics, device, yarn))
    wanted = set(noise_lanes(compared).values())
    noise = [_reordered(one, yarn) for one in compared if one.name + NOISE_SUFFIX in wanted]
    return lane, [_reordered(lane, yarn), *compared, *noise]


def _reordered(lane: Lane, yarn: float | None) -> Lane:
    """Its noise lane."""
    numerics = replace(lane.numerics, accumulation="split")
    return Lane.open(lane.name + NOISE_SUFFIX, lane.weights, numerics, lane.device, yarn)


def noise_lanes(candidates: Sequence[Lane]) -> dict[str, str]:
    """Candidate -> the noise lane of its way of rounding."""
    by_kind, found = {"": NOISE_LANE}, {}
    for lane in candidates:
        found[lane.name] = by_kind.setdefault(rounding(lane), lane.name + NOISE_SUFFIX)
    return found


def rounding(lane: Lane) -> str:
    """What is rounded to eight bits on its way into a product, "" for nothing."""
    schemes = sorted({scheme.name for scheme in lane.weights.quantized.values()})
    rounded = [name for name in schemes if lane.numerics.activations_for(name) != "none"]
    return f"{lane.numerics.activations} into {', '.join(rounded)}" if rounded else ""


def with_floors(rows: Sequence[Measurement], noise: Mapping[str, str]) -> list[Measurement]:
    """Every candidate's row beside what its noise lane has for the same; `noise` as `noise_lanes` gives it."""
    values = {(row.lane, row.name, row.slice): row.value for row in rows if is_noise(row.lane)}
    return [replace(row, noise_floor=values.get((noise.get(row.lane, ""), row.name, row.slice))) for row in rows]


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

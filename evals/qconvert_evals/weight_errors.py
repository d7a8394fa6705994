"""Every tensor of a candidate against the base's, read one at a time (definitions in `metrics.weights`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from qconvert.errors import UserError
from qconvert.families import family_of
from qconvert.formats import Weights
from qconvert_evals.metrics import weights as weights_metric
from qconvert_evals.metrics.weights import WeightState


def measure(lane: str, base: Weights, candidate: Weights, tick: Callable[[], None]) -> WeightState:
    """Errors of all tensors that both have, and the names that only one has."""
    state = WeightState(lane)
    state.missing = [name for name in base.names if name not in candidate]
    state.extra = [name for name in candidate.names if name not in base]
    family = family_of(base.config)
    kind = family.kind
    state.unloadable = [name for name in candidate.quantized if family.unloadable(name) is not None]
    for name in candidate.names:
        if name in base:
            before, after = plain(base, name), plain(candidate, name)
            if before.shape != after.shape:
                raise UserError(
                    f"tensor {name} of lane {lane} has another shape than the base's",
                    where=str(candidate.checkpoint.root),
                    expected=str(list(before.shape)),
                    found=str(list(after.shape)),
                )
            scheme = candidate.quantized.get(name)
            tile = weights_metric.PLAIN_TILE if scheme is None else scheme.block
            weights_metric.update(state, name, kind(name), before, after, scheme is not None, tile)
        tick()
    return state


def plain(weights: Weights, name: str) -> Tensor:
    """A tensor in plain form, dequantized in fp32."""
    loaded = weights.load(name)
    return loaded if isinstance(loaded, Tensor) else loaded.dequantize(torch.float32)

"""Error of the weights themselves, tensor by tensor, against the base checkpoint.

    relative error = |W' - W| / |W|  (Frobenius)       SQNR = -20 log10(relative error) dB       largest |w' - w|
    block error    = the largest relative error of any tile of the tensor: what shares a scale, or else 128 x 128

W' is what the codes and scales stand for, in fp32. A tensor's error averages over its tiles, so one wrong scale among
hundreds hardly moves it; the block error does not average, so a doubled, swapped or zeroed scale shows in the tile it
belongs to. Tiles of INT4 are groups within a row; their errors scatter more than those of FP8's large blocks. A tile
or tensor that is zero in the base is measured against the candidate's norm instead: error 1 unless both are zero.

A tensor is *touched* when it is quantized or differs from the base in any element. Slice "all" covers the touched
tensors (value 0 and n 0 when there is none), "kind=..." every tensor of that kind. `kept_changed` counts tensors that
the candidate keeps in plain form and that differ nevertheless; `missing_tensors` and `extra_tensors` count names.
Nothing is sampled, so these numbers are exact, and the same bits on every machine: W' and W' - W are elementwise in
fp32, sums of squares are in fp64 in one written order (`fixed_order`) tile by tile, tiles row by row, and tensors are
added exactly. Tensors pass in bands of rows, whose height changes nothing.

Left out: errors weighted by activations. What an error does to the outputs is measured on the outputs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qconvert_evals import statistics
from qconvert_evals.metrics.fixed_order import decibels, fold, tile_squares
from qconvert_evals.metrics.found import Found

PLAIN_TILE = (128, 128)  # of tensors without scales
BAND_CELLS = 1 << 18  # numbers of a band: 2 MB in fp64, which stay in the cache


@dataclass(frozen=True)
class TensorError:
    """Sums of squares and maxima of one tensor."""

    tensor: str
    kind: str
    quantized: bool
    error: float  # sum of (w' - w)^2
    signal: float  # sum of w^2, or of w'^2 where that is zero
    max_abs: float
    block_error: float
    block: tuple[int, int]  # row and column of the tile's first element

    @property
    def relative(self) -> float:
        """Relative Frobenius error."""
        return math.sqrt(self.error / self.signal) if self.signal else 0.0

    @property
    def touched(self) -> bool:
        """Quantized, or not what the base holds."""
        return self.quantized or self.error != 0


@dataclass
class WeightState:
    """Errors of all tensors compared so far, the names that only one side has, and quantized ones no engine loads."""

    lane: str
    tensors: list[TensorError] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    unloadable: list[str] = field(default_factory=list)


def update(
    state: WeightState,
    name: str,
    kind: str,
    base: Tensor,
    candidate: Tensor,
    quantized: bool,
    tile: tuple[int, int] = PLAIN_TILE,
) -> None:
    """Add one tensor: both in plain form and of the same shape; `quantized` says how the candidate stores it, `tile`
    how many rows and columns share a scale there."""
    if base.numel() == 0:
        state.tensors.append(TensorError(name, kind, quantized, 0.0, 0.0, 0.0, 0.0, (0, 0)))
        return
    errors, signals, norms, largest = _tiles(_as_matrix(base), _as_matrix(candidate), tile)
    total = _sum(signals) or _sum(norms)
    block_error, block = _worst_tile(errors, norms, tile) if base.dim() == 2 else (0.0, (0, 0))
    state.tensors.append(TensorError(name, kind, quantized, _sum(errors), total, largest, block_error, block))


def _as_matrix(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1, tensor.shape[-1]) if tensor.dim() > 1 else tensor.reshape(1, -1)


def _sum(tiles: Tensor) -> float:
    return float(fold(tiles.flatten(), 0))


def _tiles(base: Tensor, candidate: Tensor, tile: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, float]:
    """Sums over the tiles of (w' - w)^2, of w^2, and of w^2 or else w'^2, [n, k] each; and the largest |w' - w|."""
    tile = min(tile[0], len(base)), min(tile[1], base.shape[1])
    height = tile[0] * max(1, BAND_CELLS // (tile[0] * base.shape[1]))
    bands, largest = [], torch.zeros(())
    for old, new in zip(torch.split(base, height), torch.split(candidate, height), strict=True):
        before, after = old.float(), new.float()
        moved = after - before
        error, signal = tile_squares(moved, tile), tile_squares(before, tile)
        silent = signal == 0
        norm = torch.where(silent, tile_squares(after, tile), signal) if silent.any() else signal
        bands.append(torch.stack((error, signal, norm)))
        largest = torch.maximum(largest, moved.abs().max())
    errors, signals, norms = torch.cat(bands, dim=1)
    return errors, signals, norms, float(largest)


def _worst_tile(errors: Tensor, norms: Tensor, tile: tuple[int, int]) -> tuple[float, tuple[int, int]]:
    """Largest relative error of a tile and where the tile starts; all [n, k]."""
    ratios = torch.where(norms == 0, 0.0, errors / norms).sqrt()
    worst = int(ratios.nan_to_num(nan=math.inf).argmax())
    row, column = divmod(worst, ratios.shape[1])
    return float(ratios.flatten()[worst]), (row * tile[0], column * tile[1])


def result(state: WeightState) -> Found:
    """Touched tensors together, each kind, and the counts that must be zero."""
    found = Found(state.lane)
    _rows(found, "all", _touched(state))
    for kind in sorted({one.kind for one in state.tensors}):
        _rows(found, f"kind={kind}", [one for one in state.tensors if one.kind == kind])
    counts = {
        "quantized_tensors": sum(one.quantized for one in state.tensors),
        "kept_changed": len(kept_changed(state)),
        "missing_tensors": len(state.missing),
        "extra_tensors": len(state.extra),
        "unloadable": len(state.unloadable),
    }
    for name, count in counts.items():
        found.add(f"weights.{name}", "all", "count", statistics.exact(count, len(state.tensors)))
    return found


def kept_changed(state: WeightState) -> list[str]:
    """Plain tensors that differ from the base. A candidate without any quantized tensor declares none as kept."""
    if not any(one.quantized for one in state.tensors):
        return []
    return [one.tensor for one in state.tensors if not one.quantized and one.error != 0]


def _rows(found: Found, slice_name: str, tensors: list[TensorError]) -> None:
    error, signal = math.fsum(one.error for one in tensors), math.fsum(one.signal for one in tensors)
    pooled, n = math.sqrt(error / signal) if signal else 0.0, len(tensors)
    values = {
        "relative_error": (pooled, "ratio"),
        "relative_error_max": (_largest([one.relative for one in tensors]), "ratio"),
        "block_error_max": (_largest([one.block_error for one in tensors]), "ratio"),
        "max_abs": (_largest([one.max_abs for one in tensors]), "weight"),
    }
    for name, (value, unit) in values.items():
        found.add(f"weights.{name}", slice_name, unit, statistics.exact(value, n))
    if pooled:
        found.add("weights.sqnr_db", slice_name, "dB", statistics.exact(sqnr_db(pooled), n))
    elif slice_name == "all":
        found.absent([("weights.sqnr_db", slice_name, "dB")], "no weight differs, so the ratio is infinite")


def _largest(values: list[float]) -> float:
    """Maximum, 0 for none; NaN where any value is NaN, which plain max() may lose."""
    return math.nan if any(math.isnan(value) for value in values) else max(values, default=0.0)


def sqnr_db(relative: float) -> float:
    """Signal to quantization noise of a relative error above zero."""
    return decibels(relative) if math.isfinite(relative) else math.nan


def worst(state: WeightState, count: int) -> list[dict[str, Any]]:
    """The tensors of largest relative error, those that are not numbers first."""
    return [_record(one) for one in sorted(_touched(state), key=lambda one: -_rank(one.relative))[:count]]


def worst_blocks(state: WeightState, count: int) -> list[dict[str, Any]]:
    """The tensors with the worst single tile."""
    return [_record(one) for one in sorted(_touched(state), key=lambda one: -_rank(one.block_error))[:count]]


def _touched(state: WeightState) -> list[TensorError]:
    return [one for one in state.tensors if one.touched]


def _rank(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _record(one: TensorError) -> dict[str, Any]:
    """JSON form; numbers that are not finite become None."""
    numbers = {
        "relative_error": one.relative,
        "sqnr_db": sqnr_db(one.relative) if one.relative else math.inf,
        "max_abs": one.max_abs,
        "block_error": one.block_error,
    }
    finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
    return {"tensor": one.tensor, "kind": one.kind, "quantized": one.quantized, **finite, "block": list(one.block)}

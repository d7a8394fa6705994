"""How large a lane is on the disk, and whether it may be in memory as a whole, which generation needs."""

from __future__ import annotations

from qconvert_evals import statistics
from qconvert_evals.metrics.found import Found
from qconvert_reference.device import memory_for_weights
from qconvert_reference.lane import Lane

LIVE_BYTES = 8 << 30  # weights that may be held in a CPU's memory; on a GPU what is free decides


def too_large(lane: Lane) -> str:
    """Why a lane cannot generate, "" if it can."""
    size, limit = _bytes(lane), memory_for_weights(lane.device, LIVE_BYTES)
    if size <= limit:
        return ""
    return f"generation needs all {size:,} bytes of weights in memory; the limit is {limit:,}"


def sizes(lane: Lane) -> Found:
    """Bytes of its tensors."""
    found = Found(lane.name)
    tensors = len(lane.weights.checkpoint.tensors)
    found.add("model.bytes", "all", "bytes", statistics.exact(_bytes(lane), tensors))
    return found


def _bytes(lane: Lane) -> int:
    return sum(info.nbytes for info in lane.weights.checkpoint.tensors.values())

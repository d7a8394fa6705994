"""How long a call takes on a GPU: many of them in a CUDA graph, each with inputs of its own, replayed.

A graph leaves out what the host costs to launch kernels, which an engine pays once a step or not at all. Inputs rotate
through a set larger than twice the L2 cache, so that weights come from memory as they do between the layers of a model.
A sample is one replay, divided by its calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

REPLAYS = 100
MOST_SETS, MOST_BYTES = 128, 8 << 30
Call = Callable[[], object]


class Times(NamedTuple):
    """Seconds of one call: median, tenth and ninetieth percentile of the samples."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Times:
        """From the samples of a clock."""
        ordered = sorted(samples)
        return cls(*(_quantile(ordered, level) for level in (0.5, 0.1, 0.9)))


class Clock(Protocol):
    """Something that tells how long calls take, and how many sets of inputs it wants for that."""

    def sets(self, size: int) -> int:
        """Sets of inputs of `size` bytes each."""
        ...

    def samples(self, calls: Sequence[Call]) -> list[float]:
        """Seconds of one call, a sample a replay; all calls do the same on different inputs."""
        ...


@dataclass(frozen=True)
class GraphClock:
    """The real one."""

    device: torch.device
    replays: int = REPLAYS

    def sets(self, size: int) -> int:
        """Two caches full, within MOST_BYTES of memory; two sets at least."""
        cache: int = torch.cuda.get_device_properties(self.device).L2_cache_size
        return max(2, min(MOST_SETS, math.ceil(2 * cache / size), MOST_BYTES // size))

    def samples(self, calls: Sequence[Call]) -> list[float]:
        """RuntimeError where a call cannot be captured, because it waits for the host."""
        side = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):  # compiles and sets up whatever a first call sets up
            for _ in range(3):
                calls[0]()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for call in calls:
                call()
        for _ in range(3):
            graph.replay()
        marks = [(_event(), _event()) for _ in range(self.replays)]
        for start, end in marks:
            start.record()
            graph.replay()
            end.record()
        torch.cuda.synchronize(self.device)
        return [start.elapsed_time(end) / 1e3 / len(calls) for start, end in marks]


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _quantile(ordered: Sequence[float], level: float) -> float:
    """Interpolated, of sorted numbers."""
    place = level * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])

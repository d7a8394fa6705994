"""One row a problem: the result checked, then ours and the peers timed.

`run_all` goes on after a wrong result and lists it; whoever calls decides by `Row.wrong`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qconvert_kernels.bench import shapes
from qconvert_kernels.bench.dense import DenseFp8, DenseInt4
from qconvert_kernels.bench.experts import RoutedExperts
from qconvert_kernels.bench.others import DeltaRule, QuantizeActivations, QuantizeWeights
from qconvert_kernels.bench.peers import PEERS, Prepare
from qconvert_kernels.bench.problem import Problem
from qconvert_kernels.bench.timing import Clock, Times

PREFILL = (512, 4096)
SEQUENCES = (1, 32, 128)


@dataclass(frozen=True)
class Peer:
    """A peer's times, or why there are none."""

    times: Times | None
    why_not: str = ""


@dataclass(frozen=True)
class Row:
    """What was found of one problem; `times` is None where the result was wrong."""

    kernel: str
    shape: str
    tokens: int
    bytes: int
    flops: int
    distinct: int | None
    error: float  # |y - truth| / |truth|, or the share of bytes that differ where none may
    tolerance: float
    wrong: str = ""
    times: Times | None = None
    peers: dict[str, Peer] = field(default_factory=dict)

    @property
    def bytes_per_s(self) -> float | None:
        """Of the least that has to be moved."""
        return None if self.times is None else self.bytes / self.times.median

    @property
    def flops_per_s(self) -> float | None:
        """Useful ones."""
        return None if self.times is None else self.flops / self.times.median


def problems(tokens: Sequence[int] = shapes.TOKENS) -> Iterator[Problem]:
    """Everything that is timed at the real model's sizes, for each number of tokens."""
    for m in tokens:
        for behind in ("", "rms_norm", "silu_mul"):
            yield QuantizeActivations(shapes.HIDDEN, m, behind)
    for weight in shapes.WEIGHTS:
        for m in tokens:
            yield DenseFp8(weight, m, eight_bit_inputs=True)
            yield DenseFp8(weight, m, eight_bit_inputs=False)
            for group in (32, 64, 128):
                yield DenseInt4(weight, m, group)
    for skewed in (False, True):
        for m in tokens:
            yield RoutedExperts(shapes.EXPERTS, m, activations="fp8-group128", skewed=skewed)
            yield RoutedExperts(shapes.EXPERTS, m, skewed=skewed)
            yield RoutedExperts(shapes.EXPERTS, m, group=128, skewed=skewed)
    for group, method in ((0, "rtn"), (128, "rtn"), (128, "mse"), (32, "mse")):
        yield QuantizeWeights(shapes.WEIGHTS[0], group, method)
    for length in PREFILL:
        yield DeltaRule(shapes.HEADS, 1, length)
    for sequences in SEQUENCES:
        yield DeltaRule(shapes.HEADS, sequences, 1)


def chosen(every: Iterable[Problem], only: str) -> list[Problem]:
    """Those whose "kernel shape" the glob fits, or any part of it."""
    return [one for one in every if fnmatchcase(f"{one.kernel} {one.shape}", f"*{only}*")]


def relative_error(y: Any, truth: Any, tolerance: float) -> float:
    """See `Row.error`; NaN and infinity count as entirely wrong. Where every bit must be equal, y may be of parts."""
    if tolerance == 0:
        return float((_bytes(y) != _bytes(truth)).double().mean())
    if not bool(torch.isfinite(y).all()):
        return float("inf")
    truth = truth.double()
    return float((y.double() - truth).norm() / truth.norm())


def _bytes(parts: Tensor | Sequence[Tensor | None]) -> Tensor:
    tensors = [parts] if isinstance(parts, Tensor) else [part for part in parts if part is not None]
    return torch.cat([part.contiguous().view(torch.uint8).flatten() for part in tensors])


def measure(
    problem: Problem, device: torch.device, clock: Clock, peers: Mapping[str, Mapping[str, Prepare]] = PEERS
) -> Row:
    """Check and time one problem."""
    first = problem.inputs(device, 0)
    error = relative_error(problem.run(first), problem.truth(first), problem.tolerance)
    row = partial(
        Row, problem.kernel, problem.shape, problem.tokens, problem.bytes, problem.flops, problem.distinct, error,
        problem.tolerance,
    )  # fmt: skip
    if not error <= problem.tolerance:
        return row(wrong=f"off by {error:.3g} of its size, {problem.tolerance:.3g} is allowed")
    sets = [first, *(problem.inputs(device, 1000 * seed) for seed in range(1, clock.sets(problem.bytes)))]
    times = Times.of(clock.samples([partial(problem.run, one) for one in sets]))
    beside = {name: _peer(prepare, problem, sets, clock) for name, prepare in peers.get(problem.kernel, {}).items()}
    return row(times=times, peers=beside)


def _peer(prepare: Prepare, problem: Problem, sets: Sequence[Any], clock: Clock) -> Peer:
    """Anything may go wrong in code that is not ours; it is written down."""
    try:
        calls = [prepare(problem, one) for one in sets]
        return Peer(Times.of(clock.samples(calls)))
    except ImportError as error:
        return Peer(None, f"not installed: {error.name}")
    except Exception as error:
        return Peer(None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")


def run_all(
    every: Sequence[Problem], device: torch.device, clock: Clock, tick: Callable[[Problem], None] = lambda one: None
) -> list[Row]:
    """A row for each; memory is given back in between."""
    rows = []
    for problem in every:
        tick(problem)
        rows.append(measure(problem, device, clock))
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return rows

"""The quickest tiling for each problem, found by trying all that fit, and written as the configurations of a device.

Dense products try a grid. Routed experts have two products a tiling: for each height of a block first the best for gate
and up, then the best for down beside it. A tiling counts only if its result is right (`Problem.tolerance`); what does
not compile or does not fit is counted by its reason, so that a grid which lost a whole path to one error shows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from qconvert_kernels import tiling as dense_tiling
from qconvert_kernels.bench.dense import DenseFp8, DenseInt4
from qconvert_kernels.bench.experts import RoutedExperts
from qconvert_kernels.bench.measure import relative_error
from qconvert_kernels.bench.problem import Problem
from qconvert_kernels.bench.timing import Clock, Times
from qconvert_kernels.configurations import file_name
from qconvert_kernels.grouped import tilings as grouped_tilings
from qconvert_kernels.grouped.tilings import GroupedTiling, Product
from qconvert_kernels.tiling import BLOCK, Tiling

SomeTiling: TypeAlias = "Tiling | GroupedTiling"
SPLIT_LIMIT = 256  # tokens up to which K is worth splitting: beyond there are tiles enough


class Tunable(Problem, Protocol):
    """A problem whose kernel takes a tiling."""

    def run(self, inputs: Any, **tiling: Any) -> Tensor:
        """The kernel, with `tiling` if given."""
        ...


@dataclass
class Tuned:
    """The best tiling of one problem, None where none was right; how many were tried, and why others were not."""

    problem: Tunable
    best: SomeTiling | None = None
    seconds: float = float("inf")
    default_seconds: float = float("inf")
    tried: int = 0
    skipped: Counter[str] = field(default_factory=Counter)


def tunable(every: Iterable[Problem]) -> list[Tunable]:
    """Those whose kernel takes a tiling, one for each entry of a configuration: it knows neither groups nor routes."""
    found: dict[tuple[str, str, int], Tunable] = {}
    for one in every:
        if isinstance(one, (DenseFp8, DenseInt4)):
            found[one.kernel, one.weight.name, one.tokens] = one  # the last group of a weight is 128, the usual one
        elif isinstance(one, RoutedExperts):
            found.setdefault((one.kernel, "", one.tokens), one)
    return list(found.values())


def dense_candidates(problem: DenseFp8 | DenseInt4) -> Iterator[Tiling]:
    """All tilings that a device can hold and that waste less than half of their tokens."""
    few = product((16, 32, 64, 128), (64, 128), (1, 2, 4, 8), (4, 8), (3, 4, 5, 6))
    many = product((64, 128), (128,), (1,), (4, 8), (3, 4))
    paths = [("few_tokens", one) for one in few]
    if problem.kernel == "fp8_w8a8":
        paths += [("many_tokens", one) for one in many]
    for path, (tokens, weights, splits, warps, stages) in paths:
        if tokens > 16 and tokens >= 2 * problem.tokens:
            continue
        if splits > 1 and (problem.tokens > SPLIT_LIMIT or splits > problem.weight.k // BLOCK):
            continue
        tiling = Tiling(path, tokens, weights, splits, warps, stages)
        if not dense_tiling.problems(problem.kernel, tiling):
            yield tiling


def tune(problem: Tunable, device: torch.device, clock: Clock) -> Tuned:
    """Try them all."""
    found = Tuned(problem)
    sets = [problem.inputs(device, 1000 * seed) for seed in range(clock.sets(problem.bytes))]
    truth = problem.truth(sets[0])
    attempt = partial(_try, found, sets, truth, clock)
    found.default_seconds = Times.of(clock.samples([partial(problem.run, one) for one in sets])).median
    if isinstance(problem, RoutedExperts):
        _tune_experts(problem, attempt)
    else:
        assert isinstance(problem, (DenseFp8, DenseInt4))
        for tiling in dense_candidates(problem):
            attempt(tiling)
    return found


def _tune_experts(problem: RoutedExperts, attempt: Callable[[SomeTiling], float]) -> None:
    kind = problem.kernel.removeprefix("grouped_")
    choices = [Product(*one) for one in product((64, 128), (4, 8), (2, 3, 4, 5))]
    pairs = problem.tokens * problem.sizes.slots
    start = grouped_tilings.choose(kind, "default", pairs, problem.sizes.experts)
    for tile in (16, 32, 64):
        best = replace(start, tile=tile)
        for part in ("gate_up", "down"):
            tilings = [_with(best, part, one) for one in choices]
            fitting = [one for one in tilings if not grouped_tilings.problems(kind, one)]
            best = min(fitting, key=attempt, default=best)


def _with(tiling: GroupedTiling, part: str, one: Product) -> GroupedTiling:
    return replace(tiling, gate_up=one) if part == "gate_up" else replace(tiling, down=one)


def _try(found: Tuned, sets: Sequence[Any], truth: Tensor, clock: Clock, tiling: SomeTiling) -> float:
    """Seconds with this tiling, infinity where it is no good; the best so far is kept."""
    problem = found.problem
    try:
        y = problem.run(sets[0], tiling=tiling)
    except Exception as error:  # whatever the compiler or the driver has against it
        found.skipped[type(error).__name__] += 1
        return float("inf")
    if not relative_error(y, truth, problem.tolerance) <= problem.tolerance:
        found.skipped["wrong result"] += 1
        return float("inf")
    found.tried += 1
    seconds = Times.of(clock.samples([partial(problem.run, one, tiling=tiling) for one in sets])).median
    if seconds < found.seconds:
        found.best, found.seconds = tiling, seconds
    return seconds


def configurations(results: Sequence[Tuned], measured: str) -> dict[str, dict[str, Any]]:
    """Content of one file a kernel."""
    files: dict[str, dict[str, Any]] = {}
    for one in results:
        if one.best is None:
            continue
        content = files.setdefault(one.problem.kernel, {"measured": measured, "entries": []})
        content["entries"].append(_entry(one.problem, one.best))
    return files


def _entry(problem: Tunable, best: SomeTiling) -> dict[str, Any]:
    if isinstance(best, Tiling):
        assert isinstance(problem, (DenseFp8, DenseInt4))
        return {"M": problem.tokens, "N": problem.weight.n, "K": problem.weight.k, **asdict(best)}
    assert isinstance(problem, RoutedExperts)
    rows = grouped_tilings.rows_of(problem.tokens * problem.sizes.slots, problem.sizes.experts)
    return grouped_tilings.as_entry(rows, best)


def write(
    files: dict[str, dict[str, Any]], device_name: str, folder: Path, overwrite: bool = False
) -> tuple[list[Path], list[Path]]:
    """Files written, and files that were there already and stayed."""
    folder.mkdir(parents=True, exist_ok=True)
    written, kept = [], []
    for kernel, content in files.items():
        path = folder / file_name(kernel, device_name)
        if path.exists() and not overwrite:
            kept.append(path)
            continue
        lines = ",\n".join("    " + json.dumps(entry) for entry in content["entries"])
        path.write_text(f'{{\n  "measured": {json.dumps(content["measured"])},\n  "entries": [\n{lines}\n  ]\n}}\n')
        written.append(path)
    return written, kept

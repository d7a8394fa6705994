"""A lane's drawn measurements through the real judge, many times: how often each row and the whole comes out how."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context

import numpy as np

from benchmarks.gate.drawing import Lane
from qconvert_evals.results import Measurement, Results
from qconvert_reports.budget import Budget
from qconvert_reports.drift import judge

# What `suspicion` reads besides the rows of the budget.
SUSPICIOUS = ("logits.kl_max", "weights.relative_error", "weights.quantized_tensors")
PART = 50  # draws that a worker makes at a time
STATUSES = ("pass", "fail", "inconclusive")


@dataclass
class Outcomes:
    """Counts of verdicts, and of each row's status; a row is (rule, measurement, slice)."""

    runs: int = 0
    whole: Counter[str] = field(default_factory=Counter)
    rows: dict[tuple[str, str, str], Counter[str]] = field(default_factory=dict)
    held: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # intervals that hold the record's value
    intervals: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def add(self, other: Outcomes) -> None:
        """Those of further runs."""
        self.runs += other.runs
        self.whole += other.whole
        self.held += other.held
        self.intervals += other.intervals
        for row, count in other.rows.items():
            self.rows.setdefault(row, Counter()).update(count)

    def share(self, status: str) -> float:
        """Of all runs."""
        return self.whole[status] / self.runs

    def coverage(self, row: tuple[str, str, str]) -> float | None:
        """How often the row's interval held the truth, None for a row without intervals of some width."""
        return self.held[row] / self.intervals[row] if self.intervals[row] else None

    def row_shares(self) -> list[dict[str, object]]:
        """Rows with a status, least often passed first; an improvement is a pass."""
        listed = [
            {
                "rule": rule, "measurement": name, "slice": at,
                "pass": (count["pass"] + count["improved"]) / self.runs,
                "fail": count["fail"] / self.runs, "inconclusive": count["inconclusive"] / self.runs,
                "coverage": self.coverage((rule, name, at)),
            }
            for (rule, name, at), count in self.rows.items()
            if count["not applicable"] < self.runs
        ]  # fmt: skip
        return sorted(listed, key=lambda row: float(str(row["pass"])))


def covered(results: Results, budget: Budget, lane: str) -> Callable[[str, str], bool]:
    """Whether the judge reads that measurement of the lane: for its rows, or to tell what is too good."""
    identity = next(one for one in results.lanes if one.name == lane)
    rules = budget.rules_for(identity)
    others = {getattr(rule, "other", "") for rule in rules}
    known: dict[tuple[str, str], bool] = {}

    def wanted(name: str, at: str) -> bool:
        if (name, at) not in known:
            plain = name.removesuffix("_difference")
            speaks = any(rule.covers(plain, at) for rule in rules)
            known[name, at] = speaks or (at == "all" and name in SUSPICIOUS) or (name in others and "context" in at)
        return known[name, at]

    return wanted


class Gate:
    """The judge over draws of one lane."""

    def __init__(self, results: Results, states: list[object], lane: str, budget: Budget) -> None:
        self.budget, wanted = budget, covered(results, budget, lane)
        self.truth: dict[tuple[str, str, str], float] = {}
        self.lane = Lane(results, states, lane, wanted)
        roles = {one.name for one in results.lanes if one.role in ("base", "noise")}
        self.reference = [m for m in results.measurements if m.lane in roles and wanted(m.name, m.slice)]
        self.frame = replace(
            results,
            lanes=[one for one in results.lanes if one.name in roles or one.name == lane],
            missing=[one for one in results.missing if one.lane in roles or one.lane == lane],
            verdict=None,
        )
        self.lane.check()
        self._add(Outcomes(), self.lane.measure(*self.lane.all()))

    def outcomes(self, runs: int, seed: int, workers: int = 1) -> Outcomes:
        """Of `runs` draws; the same ones for any number of workers, since each PART of them has a seed of its own."""
        parts = [(seed, number, min(PART, runs - start)) for number, start in enumerate(range(0, runs, PART))]
        found = Outcomes()
        if workers == 1:
            for part in parts:
                found.add(self._part(*part))
            return found
        _FORKED[:] = [self]
        with ProcessPoolExecutor(workers, get_context("fork")) as pool:  # forked: the states are there, and not sent
            for one in pool.map(_part_of_the_forked, parts):
                found.add(one)
        _FORKED.clear()
        return found

    def _part(self, seed: int, number: int, runs: int) -> Outcomes:
        source, found = np.random.default_rng((seed, number)), Outcomes()
        for _ in range(runs):
            self._add(found, self.lane.measure(*self.lane.draw(source)))
        return found

    def _add(self, found: Outcomes, rows: list[Measurement]) -> None:
        verdict = judge(replace(self.frame, measurements=[*self.reference, *rows]), self.budget)
        found.runs += 1
        found.whole[verdict.status] += 1
        for row in verdict.rows:
            key = (row.rule, row.measurement, row.slice)
            found.rows.setdefault(key, Counter())[row.status] += 1
            low, high = row.ci
            if row.value is None or low is None or high is None or not low < high:
                continue
            truth = self.truth.setdefault(key, row.value)  # of the first, which is the record itself
            found.intervals[key] += 1
            found.held[key] += low <= truth <= high


_FORKED: list[Gate] = []  # whose draws a child process makes


def _part_of_the_forked(part: tuple[int, int, int]) -> Outcomes:
    return _FORKED[0]._part(*part)

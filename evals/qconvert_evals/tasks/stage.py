"""The benchmark stage of a comparison: load and check first, run every lane, join, measure.

    bench.<task>.<metric>               score of a lane                       slice "all", or filter=<name>
    bench.<task>.<metric>_difference    candidate - base, paired
    bench.<task>.<metric>_recovery      candidate / base
    bench.<task>.<metric>_lost, _gained shares of documents that flipped
    bench.<task>.<metric>_p_value       of "no difference"; _p_holm corrected over the tasks asked for
    bench.<task>.<metric>_no_worse      p of "worse by the margin or more"; _no_worse_holm corrected likewise
    bench.<task>.<metric>_detectable    the drop that would have been found four times in five
    bench.<task>.thought_tokens, .thought_cut_off      with a reasoning parser

`figures["tasks"]` holds the same row by row, the test over all tasks of each lane together ("pooled"), and what ran:
settings, version of lm-eval, chat templates, requests that lost their beginning, the documents that flipped.

lm-eval is imported in here and not above: a comparison without tasks does not need it.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qconvert.errors import UserError
from qconvert_evals import statistics
from qconvert_evals.metrics.found import Found
from qconvert_evals.results import is_noise, reference_of
from qconvert_evals.statistics import Estimate
from qconvert_evals.tasks.measure import SAME, Values, merged, score, values_of
from qconvert_evals.tasks.paired import Pair, pair, pooled
from qconvert_evals.tasks.pairing import check_joined, check_templates, check_tokenizers
from qconvert_evals.tasks.scoring import Begin
from qconvert_evals.tasks.series import Key, LaneRun, Series
from qconvert_evals.tasks.settings import TaskSettings
from qconvert_reference.lane import Lane

SHOWN_FLIPS = 20
CORRECTED = {"p_value": "p_holm", "no_worse": "no_worse_holm"}


@dataclass(frozen=True)
class Benchmarks:
    """Tasks that are loaded and lanes that may run them."""

    settings: TaskSettings
    loaded: Mapping[str, Any]
    templates: Mapping[str, str]
    left_out: Mapping[str, str]  # task -> why no lane runs it

    @classmethod
    def prepare(cls, settings: TaskSettings, lanes: Sequence[Lane], too_large: str) -> Benchmarks:
        """Everything that can be wrong is said here; `too_large` says why no whole model fits in memory, or ""."""
        require_lm_eval()
        from qconvert_evals.tasks.loading import load_tasks

        check_tokenizers(lanes)
        templates = check_templates(lanes) if settings.apply_chat_template else {}
        loaded = load_tasks(settings)
        writing = [name for name, task in loaded["tasks"].items() if task.OUTPUT_TYPE == "generate_until"]
        if not too_large or not writing:
            return cls(settings, loaded, templates, {})
        rest = {name: task for name, task in loaded["tasks"].items() if name not in writing}
        return cls(settings, {**loaded, "tasks": rest, "groups": {}}, templates, dict.fromkeys(writing, too_large))

    def run(self, lanes: Sequence[Lane], begin: Begin) -> tuple[list[Found], dict[str, Any]]:
        """Measurements of all lanes, base first, and the record for figures["tasks"]."""
        runs = [self._run_lane(lane, begin) for lane in lanes] if self.loaded["tasks"] else []
        for other in runs[1:]:
            check_joined(runs[0], other)
        found = {lane.name: Found(lane.name) for lane in lanes}
        for name, why in self.left_out.items():
            for one in found.values():
                one.absent([(f"bench.{name}.score", "all", "fraction")], why)
        table = Table(self.settings.names, found, runs) if runs else None
        rows = [] if table is None else table.rows()
        if table is not None:
            table.correct(rows)
        record = {
            "settings": self.settings.record(),
            "lm_eval": importlib.metadata.version("lm-eval"),
            "chat_templates": dict(self.templates),
            "requests_cut": {run.lane: run.cut for run in runs},
            "left_out": dict(self.left_out),
            "rows": rows,
            "pooled": {} if table is None else table.pooled(rows),
        }
        return list(found.values()), record

    def _run_lane(self, lane: Lane, begin: Begin) -> LaneRun:
        from qconvert_evals.tasks.lane_run import run_lane

        return run_lane(lane, self.loaded, self.settings, begin)


def require_lm_eval() -> None:
    """One message where the extra is not installed."""
    try:
        import lm_eval.evaluator  # noqa: F401
    except ImportError as error:
        missing = (error.name or "lm_eval").partition(".")[0]
        raise UserError(
            f"--tasks needs the package `{missing}`, which is not installed", fix="pip install 'qconvert[tasks]'"
        ) from error


class Table:
    """Fills `found` with measurements, and makes one row of figures for each metric and candidate."""

    def __init__(self, asked: Sequence[str], found: Mapping[str, Found], runs: Sequence[LaneRun]) -> None:
        self.asked, self.found, self.runs = set(asked), found, runs
        members = runs[0].members
        self.parts = {*members, *(task for tasks in members.values() for task in tasks)}  # what belongs to a group

    def rows(self) -> list[dict[str, Any]]:
        """All metrics of all tasks and groups."""
        found: list[dict[str, Any]] = []
        for key, members in self._keys().items():
            scored = {run.lane: self._score(run, key, members) for run in self.runs}
            for run in self.runs[1:]:
                against = reference_of(run.lane) if is_noise(run.lane) else self.runs[0].lane  # the base comes first
                reference, own = scored[against], scored[run.lane]
                if reference is not None and own is not None:
                    found.append(self._pair(run.lane, key, reference, own, members))
        for run in self.runs:
            self._thoughts(run)
        return found

    def correct(self, rows: list[dict[str, Any]]) -> None:
        """Holm's correction over all metrics of the tasks asked for, lane by lane, of both claims: that there is a
        difference, and that there is no loss to speak of. Parts of groups stay out of it."""
        for lane in dict.fromkeys(row["lane"] for row in rows):
            asked = [row for row in rows if row["lane"] == lane and row["asked"]]
            for claim, corrected in CORRECTED.items():
                family = [row for row in asked if row[claim] is not None]
                for row, adjusted in zip(family, statistics.holm([row[claim] for row in family]), strict=True):
                    row[corrected] = adjusted
                    key = Key(row["task"], row["metric"], row["filter"])
                    self.found[lane].add(f"{name(key)}_{corrected}", place(key), "p", Estimate(adjusted, row["n"]))

    def pooled(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The exact test over all tasks, by lane; a group whose parts were asked for as well is not counted twice."""
        twice = {group for group, parts in self.runs[0].members.items() if self.asked.intersection(parts)}
        lanes = dict.fromkeys(row["lane"] for row in rows)
        return {
            lane: pooled([row for row in rows if row["lane"] == lane and row["task"] not in twice]) for lane in lanes
        }

    def _keys(self) -> dict[Key, list[Key]]:
        """Every metric of a task, and of a group whose score is that of its documents together."""
        keys = {key: [key] for key in self.runs[0].series}
        for group in self.runs[0].groups:
            parts = [Key(task, group.metric, group.filter) for task in self.runs[0].members.get(group.task, [])]
            if parts and all(part in keys for part in parts):
                keys[group] = parts
        return keys

    def _score(self, run: LaneRun, key: Key, members: list[Key]) -> Values | None:
        series = merged([run.series[one] for one in members], run.groups.get(key))
        values = values_of(key, series)
        estimate = score(values, series)
        self.found[run.lane].add(name(key), place(key), unit(key, values), estimate, "lm-eval gives no number for it")
        return values

    def _pair(self, lane: str, key: Key, base: Values, own: Values, members: list[Key]) -> dict[str, Any]:
        better = self.runs[0].series.get(members[0], Series()).higher_is_better is not False
        one, found, at, n = pair(base, own, better), self.found[lane], place(key), len(base.sums)
        units = unit(key, base)
        found.add(f"{name(key)}_difference", at, units, one.difference)
        found.add(f"{name(key)}_recovery", at, "fraction", one.recovery, "the base scores nothing")
        alone = "documents of one cluster only, so nothing can be concluded"
        found.add(f"{name(key)}_p_value", at, "p", Estimate(one.p_value, n), alone)
        found.add(f"{name(key)}_no_worse", at, "p", Estimate(one.no_worse, n), alone)
        found.add(f"{name(key)}_detectable", at, units, Estimate(one.detectable, n), alone)
        if one.flips:
            for word, places in (("lost", one.lost), ("gained", one.gained)):
                flipped = np.zeros(n)
                flipped[places] = 1.0
                share = Values("proportion", flipped, np.ones(n), base.clusters, base.clustered, SAME).estimate()
                found.add(f"{name(key)}_{word}", at, "fraction", share)
        return self._row(lane, key, base, own, one, members)

    def _row(self, lane: str, key: Key, base: Values, own: Values, one: Pair, members: list[Key]) -> dict[str, Any]:
        series = self.runs[0].series.get(key, Series())
        documents = sorted(series.values)
        fields = dict.fromkeys(self.runs[0].series[one].clustered_by for one in members)
        clustered_by = ", ".join(field for field in fields if field is not None) or None
        return {
            "task": key.task,
            "metric": key.metric,
            "filter": key.filter,
            "asked": key.task in self.asked or key.task not in self.parts,
            "lane": lane,
            "noise": is_noise(lane),
            "unit": unit(key, base),
            "higher_is_better": series.higher_is_better,
            "n": len(base.sums),
            "clusters": len(np.unique(base.clusters)),
            "clustered_by": clustered_by,
            "base": _triple(base.estimate()),
            "score": _triple(own.estimate()),
            "difference": _triple(one.difference),
            "recovery": _triple(one.recovery),
            "p_value": one.p_value,
            "p_holm": None,  # see `correct`
            "no_worse": one.no_worse,
            "no_worse_holm": None,
            "margin": one.margin,
            "detectable": one.detectable,
            "lost": len(one.lost) if one.flips else None,
            "gained": len(one.gained) if one.flips else None,
            "lost_documents": [documents[place] for place in one.lost[:SHOWN_FLIPS] if documents],
            "gained_documents": [documents[place] for place in one.gained[:SHOWN_FLIPS] if documents],
        }

    def _thoughts(self, run: LaneRun) -> None:
        for task in dict.fromkeys(one.task for one in run.thoughts):
            mine = [one for one in run.thoughts if one.task == task]
            documents = np.asarray([one.document for one in mine], dtype=np.int64)
            lengths = np.asarray([one.tokens for one in mine], dtype=np.float64)
            cut = np.asarray([one.cut_off for one in mine], dtype=np.float64)
            found = self.found[run.lane]
            found.add(f"bench.{task}.thought_tokens", "all", "tokens", statistics.mean(lengths, documents))
            share = statistics.proportion(cut, np.ones(len(cut)), documents)
            found.add(f"bench.{task}.thought_cut_off", "all", "fraction", share)


def name(key: Key) -> str:
    """Dotted name of a metric of a task."""
    return f"bench.{key.task.replace('.', '_')}.{key.metric}"


def place(key: Key) -> str:
    """Slice of a filter; lm-eval calls the lack of one "none"."""
    return "all" if key.filter == "none" else f"filter={key.filter}"


def unit(key: Key, values: Values | None) -> str:
    """Proportions are fractions; what other metrics count in, they say by their name."""
    return "fraction" if values is not None and values.kind == "proportion" else ""


def _triple(one: Estimate) -> list[float | None]:
    return [one.value, one.low, one.high]

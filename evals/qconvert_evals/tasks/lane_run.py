"""One lane through all tasks: lm-eval builds the requests, the lane answers, lm-eval scores, and the values stay apart
by document.

What lm-eval itself makes of the values (its aggregate) is kept beside them: `measure` must come to the same number.
Which documents hang together is said by the task, or found (see `clusters`).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import Any

import numpy as np
from lm_eval.evaluator import evaluate

from qconvert_evals.tasks.clusters import cluster_field
from qconvert_evals.tasks.language_model import LaneLM
from qconvert_evals.tasks.scoring import Begin
from qconvert_evals.tasks.series import Identity, Key, LaneRun, Series
from qconvert_evals.tasks.settings import TaskSettings
from qconvert_reference.lane import Lane


def run_lane(lane: Lane, loaded: Mapping[str, Any], settings: TaskSettings, begin: Begin) -> LaneRun:
    """Run the loaded tasks."""
    model = LaneLM(lane, settings, begin)
    for task in loaded["tasks"].values():
        task.set_fewshot_seed(seed=settings.fewshot_seed)
    with _seeded(settings.fewshot_seed), redirect_stderr(StringIO()):  # lm-eval's own progress bars
        found = evaluate(
            lm=model,
            task_dict=loaded,
            limit=settings.limit,
            bootstrap_iters=0,
            log_samples=True,
            apply_chat_template=settings.apply_chat_template,
            fewshot_as_multiturn=settings.apply_chat_template,
        )
    series: dict[Key, Series] = {}
    for task, samples in found["samples"].items():
        cluster = _cluster_field(loaded["tasks"][task])
        for sample in samples:
            _add(series, task, sample, cluster)
    for key, one in series.items():
        one.aggregate = _number(found["results"][key.task].get(f"{key.metric},{key.filter}"))
        one.higher_is_better = found["higher_is_better"].get(key.task, {}).get(key.metric)
    members = {name: [one.task_name for one in group.get_all_tasks()] for name, group in loaded["groups"].items()}
    return LaneRun(lane.name, series, model.thoughts, model.cut, members, _groups(found))


def _add(series: dict[Key, Series], task: str, sample: Mapping[str, Any], cluster: str | None) -> None:
    asked = json.dumps(sample["arguments"], default=str, ensure_ascii=False)
    identity = Identity(sample["doc_hash"], hashlib.sha256(asked.encode()).hexdigest(), sample["target_hash"])
    document = sample["doc_id"]
    for metric in sample["metrics"]:
        one = series.setdefault(Key(task, metric, sample["filter"]), Series())
        if document in one.values:
            raise ValueError(f"lm-eval gave document {document} of {task}, {metric}, twice")
        one.values[document] = sample[metric]
        one.identities[document] = identity
        if cluster is not None:
            one.clusters[document] = str(sample["doc"][cluster]).strip()
            one.clustered_by = cluster


def _cluster_field(task: Any) -> str | None:
    stated: str | None = (task.config.metadata or {}).get("cluster")
    return stated if stated is not None else cluster_field(task.eval_docs)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and np.isfinite(value) else None


def _groups(found: Mapping[str, Any]) -> dict[Key, float]:
    """lm-eval's aggregates over groups; their names are "metric,filter"."""
    aggregates = {}
    for group, row in (found.get("groups") or {}).items():
        for name, entry in row.items():
            metric, comma, filter_ = name.partition(",")
            value = _number(entry)
            if comma and not metric.endswith("_stderr") and value is not None:
                aggregates[Key(group, metric, filter_)] = value
    return aggregates


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Some tasks draw from the global generators: the same draws for every lane, and the caller's state given back."""
    python, numbers = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)

"""Samples of two lanes are joined one to one, or the run stops and says what differs."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import pytest

from qconvert.errors import UserError
from qconvert_evals.tasks.pairing import check_joined
from qconvert_evals.tasks.series import Identity, Key, LaneRun, Series


def lane(name: str) -> LaneRun:
    """Two tasks of one metric, and a second metric of the first, over 12 documents each."""
    series = {}
    for task, metric in (("maths", "acc"), ("maths", "f1"), ("code", "acc")):
        asked = {n: Identity(f"document {task} {n}", f"prompt {task} {n}", f"target {n}") for n in range(12)}
        series[Key(task, metric, "none")] = Series(dict.fromkeys(asked, 1.0), asked)
    return LaneRun(name, series, [])


def drop_series(run: LaneRun) -> None:
    del run.series[Key("code", "acc", "none")]


def drop_documents(run: LaneRun) -> None:
    one = run.series[Key("maths", "f1", "none")]
    del one.values[3], one.identities[3]
    one.values[20], one.identities[20] = 1.0, Identity("new", "new", "new")


def change(part: str) -> Callable[[LaneRun], None]:
    def changed(run: LaneRun) -> None:
        one = run.series[Key("code", "acc", "none")].identities
        one[7] = one[7]._replace(**{part: "another one"})

    return changed


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (drop_series, r"different tasks or metrics\n  expected: code.acc, maths.acc, maths.f1\n  found: maths.acc"),
        (drop_documents, r"different documents of task maths\n  expected: 12 documents\n  found: 12, 2 not in common$"),
        (
            change("document"),
            r"the document differs\n  where: task code, document 7\n  expected: document document code 7",
        ),
        (
            change("prompt"),
            r"the prompt differs\n  where: task code, document 7\n(.|\n)*found: another one\n  way out: few",
        ),
        (change("target"), r"the target differs\n  where: task code, document 7\n"),
    ],
)
def test_what_differs_is_said(fault: Callable[[LaneRun], None], message: str) -> None:
    base, other = lane("bf16"), lane("fp8")
    check_joined(base, other)
    fault(other)
    with pytest.raises(UserError, match=message):
        check_joined(base, other)
    with pytest.raises(UserError):  # seen from either side
        check_joined(other, base)


def test_order_is_no_difference() -> None:
    base, other = lane("bf16"), lane("fp8")
    for one in other.series.values():
        one.values, one.identities = (dict(reversed(deepcopy(table).items())) for table in (one.values, one.identities))
    check_joined(base, other)


def test_lanes_without_samples_are_joined() -> None:
    check_joined(LaneRun("bf16", {}, []), LaneRun("fp8", {}, []))


def test_a_document_that_lm_eval_gives_twice_is_no_value() -> None:
    lane_run = pytest.importorskip("qconvert_evals.tasks.lane_run")
    sample = {"arguments": [], "doc_hash": "d", "target_hash": "t", "doc_id": 4, "metrics": ["acc"], "filter": "none"}
    series: dict[Key, Series] = {}
    lane_run._add(series, "maths", sample | {"acc": 1.0}, None)
    with pytest.raises(ValueError, match="document 4 of maths, acc, twice"):
        lane_run._add(series, "maths", sample | {"acc": 0.0}, None)

"""Documents that share a passage are taken together, whether the task says so or its fields show it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats as st

from qconvert_evals.metrics.found import Found
from qconvert_evals.tasks.clusters import cluster_field
from qconvert_evals.tasks.lane_run import run_lane
from qconvert_evals.tasks.loading import load_tasks
from qconvert_evals.tasks.measure import values_of
from qconvert_evals.tasks.paired import pair
from qconvert_evals.tasks.series import Key, LaneRun
from qconvert_evals.tasks.settings import TaskSettings
from qconvert_evals.tasks.stage import Table
from qconvert_reference.lane import Lane
from qconvert_reports.benchmarks_view import finding
from tests.tasks.conftest import quiet

TASK = """task: reading
custom_dataset: !function rows.load
test_split: test
output_type: multiple_choice
doc_to_text: "{{passage}} {{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""
ROWS = """import json
from pathlib import Path

import datasets


def load(**settings):
    rows = json.loads((Path(__file__).parent / "rows.json").read_text())
    return {"test": datasets.Dataset.from_list(rows)}
"""


def questions(passages: int, each: int) -> list[dict[str, Any]]:
    return [
        {"passage": f"text {p}", "question": f"{q}?", "choices": ["a", "b"], "answer": q % 2}
        for p in range(passages)
        for q in range(each)
    ]


def run(lane: Lane, folder: Path, **settings: Any) -> LaneRun:
    folder.mkdir()
    (folder / "reading.yaml").write_text(TASK)
    (folder / "rows.py").write_text(ROWS)
    (folder / "rows.json").write_text(json.dumps(questions(6, 5)))
    asked = TaskSettings(("reading",), include_path=(folder,), **settings)
    return run_lane(lane, load_tasks(asked), asked, quiet)


def test_a_task_that_shares_passages_and_does_not_say_so(lane: Lane, tmp_path: Path) -> None:
    """All that changes is one passage: one event, where independent questions would make it five."""
    key = Key("reading", "acc", "none")
    base, other = run(lane, tmp_path / "a"), run(lane, tmp_path / "b")
    for one, right in ((base, 1.0), (other, 0.0)):
        series = one.series[key]
        assert series.clustered_by == "passage" and len(set(series.clusters.values())) == 6
        series.values = {document: right if document < 5 else 1.0 for document in series.values}
        series.aggregate = float(np.mean(list(series.values.values())))
    before, after = values_of(key, base.series[key]), values_of(key, other.series[key])
    assert before is not None and after is not None and before.clustered
    found = pair(before, after)
    assert (len(found.lost), len(found.gained)) == (5, 0)
    assert found.p_value == pytest.approx(st.ttest_1samp([-1.0] + [0.0] * 5, 0).pvalue) and found.p_value > 0.3
    table = Table(("reading",), {"fp32": Found("fp32")}, [base, other])
    (row,) = table.rows()
    table.correct([row])
    assert (row["clustered_by"], row["clusters"], row["n"]) == ("passage", 6, 30)
    assert finding(row).startswith("cannot tell") and finding(row).endswith("(6 clusters by passage)")
    assert table.pooled([row]) == {"fp32": None}


def test_a_limit_does_not_hide_that_all_questions_share_a_passage(lane: Lane, tmp_path: Path) -> None:
    series = run(lane, tmp_path / "a", limit=4).series[Key("reading", "acc", "none")]
    assert series.clustered_by == "passage" and len(series.values) == 4 and len(set(series.clusters.values())) == 1
    values = values_of(Key("reading", "acc", "none"), series)
    assert values is not None and pair(values, values).p_value is None


@pytest.mark.parametrize(
    "documents, field",
    [
        ([{"passage": "a"}, {"passage": "a"}, {"passage": "b"}], "passage"),
        ([{"passage": "a "}, {"passage": "a"}, {"passage": "b"}], "passage"),  # spaces at the end
        ([{"document_id": 1}, {"document_id": 1}, {"document_id": 2}], "document_id"),
        ([{"context": c, "article": a} for c, a in (("p", 1), ("p", 1), ("q", 1), ("r", 2))], "article"),  # the coarser
        ([{"passage": "a"}, {"passage": "b"}], None),  # each its own
        ([{"context": "same"}, {"context": "same"}], None),  # a constant says nothing
        ([{"context": ""}, {"context": ""}, {"context": "a"}], None),
        ([{"passage": "a"}, {"passage": "a"}, {"question": "b"}], None),  # not all have it
        ([{"passage": ["a"]}, {"passage": ["a"]}, {"passage": ["b"]}], None),
        ([{"answer": "a"}, {"answer": "a"}, {"answer": "b"}], None),  # an answer is no passage
        ([], None),
    ],
)
def test_which_field_says_so(documents: list[dict[str, Any]], field: str | None) -> None:
    assert cluster_field(documents) == field

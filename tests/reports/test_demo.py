"""`qconvert demo` for real, once: the whole comparison of the shipped model, and its verdict."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

from qconvert.cli import commands
from qconvert_evals.results import Results
from qconvert_reports.budget import default_budget
from qconvert_reports.drift import judge

pytestmark = pytest.mark.slow
SCHEMES = {"fp8": "fp8-block128", "int4": "int4-g32"}


@dataclass(frozen=True)
class Demo:
    """What the command left."""

    exit_code: int
    output: str
    report: Path
    work: Path

    @property
    def results(self) -> Results:
        return Results.load(self.report / "results.json")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    folder = tmp_path_factory.mktemp("demo")
    words = ["demo", "--report", str(folder / "report"), "--work", str(folder / "work")]
    done = CliRunner().invoke(commands.main, words, catch_exceptions=False)
    return Demo(done.exit_code, done.output, folder / "report", folder / "work")


def test_the_demo_passes(demo: Demo) -> None:
    """Exit code 0 says that no check failed and none was left open."""
    assert demo.exit_code == 0, demo.output
    assert "PASS fp8, int4: within the budget in all " in demo.output
    assert {path.name for path in demo.report.iterdir()} >= {"results.json", "report.html", "report.md", "junit.xml"}


def test_every_kind_of_check_was_made_on_both_lanes(demo: Demo) -> None:
    """A pass of nothing is no pass: each lane was judged on numbers of every kind, over the whole text."""
    results = demo.results
    assert results.verdict is not None and results.verdict.status == "pass"
    assert results.tool["tokens"] == 16_384 and results.tool["documents"] >= 32
    assert {one.name: one.recipe["scheme"] for one in results.lanes if one.role == "candidate"} == SCHEMES
    for lane in SCHEMES:
        judged = {row.measurement for row in results.verdict.rows if row.lane == lane and row.value is not None}
        assert judged >= {
            "logits.kl_mean", "logits.top1_agreement", "logits.ppl_ratio", "router.topk_overlap",
            "mtp.acceptance_greedy", "mtp.accept_length", "weights.relative_error_max", "weights.kept_changed",
        }  # fmt: skip


def test_a_lane_that_drifts_further_than_the_budget_fails(demo: Demo) -> None:
    """The fault: the same numbers, with the drift of FP8 forty times as large."""
    results = demo.results
    for number, row in enumerate(results.measurements):
        if (row.name, row.lane, row.slice) == ("logits.kl_mean", "fp8", "all"):
            assert row.value is not None and row.ci_low is not None and row.ci_high is not None
            scaled = {part: 40 * getattr(row, part) for part in ("value", "ci_low", "ci_high")}
            results.measurements[number] = type(row)(**{**vars(row), **scaled})
    verdict = judge(results, default_budget())
    assert verdict.status == "fail"
    failed = {(row.lane, row.measurement) for row in verdict.rows if row.status == "fail"}
    assert failed == {("fp8", "logits.kl_mean")}

"""What is concluded from pairs: the right test for each kind of score, and Holm's correction over a lane's tasks."""

from typing import Any

import numpy as np
import pytest
import scipy.stats as st

from qconvert_evals import statistics
from qconvert_evals.metrics.found import Found
from qconvert_evals.tasks.measure import EXP, SAME, Values
from qconvert_evals.tasks.paired import MARGIN, pair, pooled
from qconvert_evals.tasks.series import Key, LaneRun, Series
from qconvert_evals.tasks.stage import Table


def answers(right: list[int] | np.ndarray, clusters: list[int] | None = None) -> Values:
    sums = np.asarray(right, dtype=np.float64)
    owners = np.arange(len(sums)) if clusters is None else np.asarray(clusters)
    return Values("proportion", sums, np.ones(len(sums)), owners, clusters is not None, SAME)


def losses(nats: np.ndarray, counts: np.ndarray) -> Values:
    return Values("ratio", nats, counts, np.arange(len(nats)), False, EXP)


def test_right_and_wrong_take_mcnemar() -> None:
    base = answers([1] * 60 + [0] * 40)
    candidate = answers([1] * 48 + [0] * 12 + [1] * 3 + [0] * 37)
    found = pair(base, candidate)
    assert (len(found.lost), len(found.gained)) == (12, 3)
    assert found.p_value == statistics.mcnemar(12, 3) == pytest.approx(st.binomtest(12, 15).pvalue)
    assert found.difference.value == pytest.approx(-0.09) and found.margin == MARGIN
    assert found.no_worse is not None and found.no_worse > 0.9
    error = np.std(candidate.sums - base.sums, ddof=1) / 10
    assert found.detectable == pytest.approx((1.6449 + 0.8416) * error, rel=1e-3)


def test_clustered_answers_take_the_t_test_over_clusters() -> None:
    """Ten questions about each of eight texts: all flips are in one text, which is one event and not ten."""
    owners = [text for text in range(8) for _ in range(10)]
    base, candidate = answers([1] * 80, owners), answers([0] * 10 + [1] * 70, owners)
    assert statistics.mcnemar(10, 0) < 0.01
    found = pair(base, candidate).p_value
    assert found == pytest.approx(st.ttest_1samp([-1.0] + [0.0] * 7, 0).pvalue) and found > 0.3


def test_nothing_flipped_is_not_infinitely_sharp() -> None:
    found = pair(answers([1] * 30 + [0] * 34), answers([1] * 30 + [0] * 34))
    assert found.p_value == 1.0 and found.difference.value == 0
    assert found.detectable == pytest.approx(2.4865 * np.sqrt(statistics.wilson(0, 64)[1] / 64), rel=1e-4)
    assert found.detectable > 0.05  # 64 documents cannot see five points
    assert found.difference.high == -found.difference.low == pytest.approx(1 - 0.05 ** (1 / 64))
    assert found.recovery.value == 1 and found.recovery.low is not None and found.recovery.low < 0.95
    assert found.no_worse == pytest.approx(0.99**64) and found.no_worse > 0.5
    many = pair(answers([1] * 400), answers([1] * 400)).no_worse
    assert many is not None and many < 0.05


def test_a_lane_that_is_certainly_no_worse() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(20000) < 0.8
    flipped = right ^ (rng.random(20000) < 0.01)
    found = pair(answers(right.astype(int)), answers(flipped.astype(int)))
    assert found.no_worse is not None and found.no_worse < 0.05


def test_perplexity_gets_an_interval_a_p_and_a_margin_of_its_own_size() -> None:
    rng = np.random.default_rng(1)
    counts = rng.integers(50, 500, 40).astype(np.float64)
    nats = counts * (2 + 0.2 * rng.normal(size=40))
    worse = losses(nats * 1.02, counts)
    found = pair(losses(nats, counts), worse, higher_is_better=False)
    assert found.margin == pytest.approx(0.01 * losses(nats, counts).score)
    assert found.p_value is not None and found.p_value < 1e-3 and not found.flips
    assert found.difference.low is not None and found.difference.low > 0
    assert found.no_worse is not None and found.no_worse > 0.95  # more than 1% worse
    better = pair(losses(nats, counts), losses(nats * 0.98, counts), higher_is_better=False)
    assert better.no_worse is not None and better.no_worse < 1e-3


def test_one_document_concludes_nothing() -> None:
    found = pair(answers([1, 0], [0, 0]), answers([0, 0], [0, 0]))
    assert (found.p_value, found.no_worse, found.detectable) == (None, None, None)


def test_holm_goes_over_what_was_asked_for_lane_by_lane() -> None:
    runs = [LaneRun(name, {Key("a", "acc", "none"): Series()}, []) for name in ("bf16", "fp8")]
    found = {name: Found(name) for name in ("bf16", "fp8", "int4")}
    rows = [
        {"task": task, "metric": "acc", "filter": "none", "lane": lane, "asked": task != "part", "p_value": p,
         "no_worse": worse, "n": 9}
        for lane in ("fp8", "int4")
        for task, p, worse in (("a", 0.01, 0.04), ("b", 0.03, 0.2), ("c", None, 0.01), ("part", 0.001, 0.001))
    ]  # fmt: skip
    Table(("a", "b", "c"), found, runs).correct(rows)
    assert [row.get("p_holm") for row in rows] == [0.02, 0.03, None, None] * 2
    assert [row.get("no_worse_holm") for row in rows] == [0.08, 0.2, 0.03, None] * 2  # 0.04 alone certifies nothing
    assert [(one.name, one.value) for one in found["fp8"].measurements] == [
        ("bench.a.acc_p_holm", 0.02), ("bench.b.acc_p_holm", 0.03),
        ("bench.a.acc_no_worse_holm", 0.08), ("bench.b.acc_no_worse_holm", 0.2), ("bench.c.acc_no_worse_holm", 0.03),
    ]  # fmt: skip


def row(task: str, lost: int | None, gained: int | None, **more: Any) -> dict[str, Any]:
    return {"task": task, "asked": True, "n": 100, "lost": lost, "gained": gained, "clustered_by": None, **more}


def test_tasks_together_see_a_loss_that_none_shows_by_itself() -> None:
    rows = [row(f"t{number}", 7, 2) for number in range(6)]
    assert min(statistics.holm([statistics.mcnemar(7, 2)] * 6)) > 0.5
    found = pooled(rows)
    assert found is not None and (found["lost"], found["gained"], found["n"]) == (42, 12, 600)
    assert found["p_value"] == pytest.approx(st.binomtest(42, 54).pvalue) and found["p_value"] < 1e-3


def test_pooling_takes_each_answer_once_and_no_clusters() -> None:
    rows = [
        row("a", 3, 1), row("a", 9, 0),  # a second metric of the same answers
        row("b", 2, 2), row("part", 5, 0, asked=False), row("ppl", None, None),
        row("squad", 8, 1, clustered_by="context"),
    ]  # fmt: skip
    found = pooled(rows)
    assert found is not None and (found["tasks"], found["clustered"]) == (["a", "b"], ["squad"])
    assert (found["lost"], found["gained"], found["n"]) == (5, 3, 200)
    assert pooled(rows[:2]) is None  # one task is itself


def test_pooled_p_values_are_exact_over_tasks_of_any_size() -> None:
    """Without a difference at most 5% of 2,000 worlds are rejected, whatever the tasks' sizes and shares of flips."""
    rng = np.random.default_rng(6)
    rejected = 0
    for _ in range(2000):
        flips = rng.binomial([20, 200, 1000], [0.2, 0.05, 0.01])
        lost = rng.binomial(flips, 0.5)
        found = pooled([row(str(n), int(a), int(b - a)) for n, (a, b) in enumerate(zip(lost, flips, strict=True))])
        assert found is not None
        rejected += found["p_value"] < 0.05
    assert rejected / 2000 < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)

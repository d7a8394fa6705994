"""What is concluded from pairs: the right test for each kind of score, and Holm's correction over a lane's tasks."""

import numpy as np
import pytest
import scipy.stats as st

from qconvert_evals import statistics
from qconvert_evals.metrics.found import Found
from qconvert_evals.tasks.measure import EXP, SAME, Values
from qconvert_evals.tasks.paired import MARGIN, pair
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
        {"task": task, "metric": "acc", "filter": "none", "lane": lane, "asked": task != "part", "p_value": p, "n": 9}
        for lane in ("fp8", "int4")
        for task, p in (("a", 0.01), ("b", 0.03), ("c", None), ("part", 0.001))
    ]
    Table(("a", "b", "c"), found, runs).correct(rows)
    assert [row.get("p_holm") for row in rows] == [0.02, 0.03, None, None] * 2
    assert [(one.name, one.value) for one in found["fp8"].measurements] == [
        ("bench.a.acc_p_holm", 0.02), ("bench.b.acc_p_holm", 0.03)
    ]  # fmt: skip

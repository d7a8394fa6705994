"""Tests on pairs against own formulas and other libraries, and by simulation where the claim is a rate."""

import numpy as np
import pytest
import scipy.stats as st
from hypothesis import given, settings
from hypothesis import strategies as draw
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.weightstats import DescrStatsW

from qconvert_evals import statistics as s
from tests.evals import own_formulas

counts = draw.integers(0, 400)
seeds = draw.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(counts, counts)
def test_mcnemar(lost: int, gained: int) -> None:
    ours = s.mcnemar(lost, gained)
    assert ours == pytest.approx(own_formulas.mcnemar(lost, gained), rel=1e-9, abs=1e-15)
    if lost + gained:
        assert ours == pytest.approx(st.binomtest(lost, lost + gained).pvalue, rel=1e-9, abs=1e-15)


def test_mcnemar_of_many_pairs() -> None:
    assert s.mcnemar(5200, 4900) == pytest.approx(st.binomtest(5200, 10100).pvalue, rel=1e-9)


@settings(deadline=None)
@given(draw.integers(1, 500), draw.data())
def test_wilson(n: int, data: draw.DataObject) -> None:
    k = data.draw(draw.integers(0, n))
    assert s.wilson(k, n) == pytest.approx(own_formulas.wilson(k, n), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(draw.lists(draw.floats(0, 1), min_size=1, max_size=30))
def test_holm(p_values: list[float]) -> None:
    assert s.holm(p_values) == pytest.approx(own_formulas.holm(p_values), rel=1e-12, abs=1e-300)


def test_holm_of_nothing() -> None:
    assert s.holm([]) == []


@settings(max_examples=50, deadline=None)
@given(seeds, draw.integers(2, 60), draw.floats(-2, 2))
def test_t_test(seed: int, n: int, shift: float) -> None:
    values = np.random.default_rng(seed).normal(shift, size=n)
    assert s.t_test(values, np.arange(n)) == pytest.approx(st.ttest_1samp(values, 0).pvalue, rel=1e-6, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(seeds, draw.integers(3, 60), draw.floats(-1, 1), draw.floats(0.05, 2))
def test_tost(seed: int, n: int, shift: float, margin: float) -> None:
    values = np.random.default_rng(seed).normal(shift, size=n)
    found = s.equivalence(values, np.arange(n), margin)
    wanted, lower, _ = DescrStatsW(values).ttost_mean(-margin, margin)
    assert found is not None
    assert (found.equal, found.no_worse) == pytest.approx((wanted, lower[1]), rel=1e-6, abs=1e-12)
    assert own_formulas.tost(values.tolist(), margin) == pytest.approx(
        (found.no_worse, found.equal), rel=1e-6, abs=1e-12
    )
    mirrored = s.equivalence(-values, np.arange(n), margin, higher_is_better=False)
    assert mirrored is not None and mirrored.no_worse == pytest.approx(found.no_worse, rel=1e-9)


def test_degenerate_pairs() -> None:
    same, clusters = np.zeros(5), np.arange(5)
    assert s.t_test(same, clusters) == 1.0 and s.t_test(same + 1, clusters) == 0.0
    assert s.t_test(same, np.zeros(5, dtype=np.int64)) is None and s.t_test(np.zeros(0), np.zeros(0, np.int64)) is None
    found = s.equivalence(same, clusters, 0.1)
    assert found is not None and (found.no_worse, found.equal) == (0, 0)
    assert s.equivalence(same, np.zeros(5, dtype=np.int64), 0.1) is None
    with pytest.raises(ValueError, match="no room"):
        s.equivalence(same, clusters, 0.0)


@pytest.mark.parametrize(
    "n, unpaired, two, five, ten",
    [(14042, 1.06, 0.30, 0.47, 0.66), (12032, 1.14, 0.32, 0.51, 0.72), (10042, 1.25, 0.35, 0.55, 0.78),
     (1319, 3.46, 0.97, 1.53, 2.17), (541, 5.40, 1.51, 2.39, 3.38), (198, 8.92, 2.50, 3.95, 5.59)],
)  # fmt: skip
def test_detectable_differences_of_known_benchmarks(
    n: int, unpaired: float, two: float, five: float, ten: float
) -> None:
    """In points: two proportions of 0.85, and pairs of which 2, 5 and 10% flip (MMLU to GPQA)."""
    errors = [np.sqrt(2 * 0.85 * 0.15 / n), *(np.sqrt(flips / n) for flips in (0.02, 0.05, 0.10))]
    found = [100 * s.smallest_detectable(error) for error in errors]
    assert found == pytest.approx([unpaired, two, five, ten], abs=0.0051)


@settings(max_examples=20, deadline=None)
@given(seeds, draw.floats(0.05, 0.5))
def test_clustered_tests_are_those_of_a_regression_with_clustered_errors(seed: int, margin: float) -> None:
    """A regression on nothing but a constant, with statsmodels' cluster-robust variance and t of clusters - 1."""
    rng = np.random.default_rng(seed)
    clusters = np.sort(rng.integers(0, 12, 60))
    values = 0.1 + rng.normal(size=12)[clusters] + rng.normal(size=60)
    fit = OLS(values, np.ones(60)).fit(cov_type="cluster", cov_kwds={"groups": clusters}, use_t=True)
    assert s.standard_error(values - values.mean(), clusters) == pytest.approx(fit.bse[0], rel=1e-9)
    assert s.t_test(values, clusters) == pytest.approx(fit.pvalues[0], rel=1e-9)
    found = s.equivalence(values, clusters, margin)
    assert found is not None
    df = len(np.unique(clusters)) - 1
    distances = [(values.mean() + margin) / fit.bse[0], (margin - values.mean()) / fit.bse[0]]
    worse, better = (own_formulas.one_sided(float(one), df) for one in distances)
    assert (found.no_worse, found.equal) == pytest.approx((worse, max(worse, better)), rel=1e-6, abs=1e-12)


def test_sizes_and_powers() -> None:
    """2000 worlds each; bounds are three binomial deviations.

    Without a difference, McNemar and the clustered t test reject at most 5% of the time. With a true drop of what is
    called detectable, a one-sided test at 5% finds it 80% of the time.
    """
    rng, worlds = np.random.default_rng(5), 2000
    lost, flips = rng.binomial(60, 0.5, worlds), 60
    rejected = np.mean([s.mcnemar(int(one), flips - int(one)) < 0.05 for one in lost])
    assert rejected < 0.05 + 3 * np.sqrt(0.05 * 0.95 / worlds)
    clusters = np.repeat(np.arange(25), 4)
    rejected = np.mean([s.t_test(_correlated(rng, clusters), clusters) < 0.05 for _ in range(worlds)])
    assert abs(rejected - 0.05) < 3 * np.sqrt(0.05 * 0.95 / worlds) + 0.005  # t of clusters is not quite t
    n, share = 2000, 0.05
    drop = s.smallest_detectable(np.sqrt(share / n))
    chances = [(share + drop) / 2, (share - drop) / 2]
    found = 0
    for _ in range(worlds):
        down, up, _ = rng.multinomial(n, [*chances, 1 - share])
        found += st.binomtest(int(down), int(down + up), alternative="greater").pvalue < 0.05
    # The exact test is a little conservative on 100 flips: 4% of its level are lost to whole numbers.
    assert found / worlds > 0.8 - 0.04 - 3 * np.sqrt(0.8 * 0.2 / worlds)


def _correlated(rng: np.random.Generator, clusters: s.Index) -> s.Array:
    return rng.normal(size=25)[clusters] + rng.normal(size=len(clusters))

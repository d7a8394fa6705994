"""Intervals against scipy where scipy has the same thing, and against simulation where coverage is the claim."""

import numpy as np
import pytest
import scipy.stats as st

from qconvert_evals import statistics as s
from qconvert_evals.statistics import intervals


def documents_of(sizes: list[int]) -> s.Index:
    return np.repeat(np.arange(len(sizes)), sizes)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 10, 17, 100, 1000])
def test_t_quantile_is_students(df: int) -> None:
    assert s.t_quantile(df) == pytest.approx(st.t.ppf(0.975, df), rel=1e-9)


def test_large_df_is_normal() -> None:
    assert s.t_quantile(5000) == pytest.approx(st.t.ppf(0.975, 5000), rel=1e-3)


@pytest.mark.parametrize(("k", "n"), [(0, 20), (20, 20), (7, 20), (991, 1000)])
def test_wilson(k: int, n: int) -> None:
    expected = st.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert s.wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_mean_of_single_token_documents_is_the_t_interval() -> None:
    values = np.random.default_rng(1).normal(size=25)
    found = s.mean(values, np.arange(25))
    low, high = st.t.interval(0.95, 24, loc=values.mean(), scale=st.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), low, high), rel=1e-9)


def test_repeating_every_token_of_a_document_changes_nothing() -> None:
    """Copies are no evidence: an interval that counted tokens would shrink by the square root of ten."""
    values = np.random.default_rng(2).normal(size=12)
    once = s.mean(values, np.arange(12))
    tenfold = s.mean(np.repeat(values, 10), np.repeat(np.arange(12), 10))
    assert (tenfold.low, tenfold.high) == pytest.approx((once.low, once.high), rel=1e-9)


def test_ratio_of_document_sums_equals_ratio_of_tokens() -> None:
    rng = np.random.default_rng(3)
    documents = documents_of([3, 9, 1, 30, 12])
    y, x = rng.random(55), rng.random(55)
    tokens = s.ratio(y, x, documents)
    sums = s.ratio(np.bincount(documents, y), np.bincount(documents, x), np.arange(5))
    assert tokens.value == pytest.approx(sums.value)
    assert (tokens.low, tokens.high) == pytest.approx((sums.low, sums.high))


def test_coverage_of_a_clustered_mean() -> None:
    """95% intervals over 20 correlated documents hold the truth in 95% of 1000 worlds.

    Within three binomial deviations: 3 sqrt(0.95 * 0.05 / 1000) = 2.1 points.
    """
    rng = np.random.default_rng(4)
    documents = documents_of([5] * 10 + [20] * 10)
    hits = naive = 0
    for _ in range(1000):
        values = rng.normal(size=20)[documents] + rng.normal(size=len(documents))
        found = s.mean(values, documents)
        assert found.low is not None and found.high is not None
        hits += found.low <= 0 <= found.high
        naive += abs(values.mean()) <= 1.96 * st.sem(values)
    assert abs(hits / 1000 - 0.95) < 0.021
    assert naive / 1000 < 0.75  # what tokens-as-independent would have claimed


def test_correlation_and_rms() -> None:
    rng = np.random.default_rng(5)
    a = rng.normal(size=4000)
    b = a + rng.normal(size=4000)
    found = s.correlation(a, b, np.arange(4000))
    reference = st.pearsonr(a, b)
    assert found.value == pytest.approx(reference.statistic, rel=1e-12)
    expected = reference.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=3e-3)
    assert s.correlation(a, np.ones(4000), np.arange(4000)).value is None
    assert s.root_mean_square(a, np.arange(4000)).value == pytest.approx(np.sqrt((a * a).mean()))


def test_quantiles_equal_those_of_written_out_resamples() -> None:
    rng = np.random.default_rng(6)
    documents = documents_of([4, 1, 7, 2, 9])
    values = rng.exponential(size=23)
    levels = np.array([0, 0.001, 0.25, 0.5, 0.99, 1.0])
    drawn = intervals._resampled_quantiles(values, levels, documents)
    weights = np.random.default_rng(s.SEED).multinomial(5, np.full(5, 0.2), size=s.RESAMPLES)
    for row in range(0, s.RESAMPLES, 37):
        written = np.concatenate([values[documents == g] for g in range(5) for _ in range(weights[row, g])])
        assert drawn[row] == pytest.approx(np.quantile(written, levels), rel=1e-12)


def test_chunked_bootstrap_equals_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    values, documents = np.random.default_rng(7).random(40), documents_of([8] * 5)
    whole = s.quantiles(values, [0.5, 0.99], documents)
    monkeypatch.setattr(intervals, "_CELLS", 120)
    assert s.quantiles(values, [0.5, 0.99], documents) == whole


def test_one_document_has_no_interval() -> None:
    one = np.zeros(9, dtype=np.int64)
    values = np.arange(9.0)
    for found in (s.mean(values, one), s.quantiles(values, [0.5], one)[0], s.ratio(values, values + 1, one)):
        assert found.value is not None and found.low is None and found.high is None


def test_nothing_is_not_zero() -> None:
    none = np.zeros(0)
    index = np.zeros(0, dtype=np.int64)
    assert s.mean(none, index).value is None
    assert s.ratio(np.zeros(3), np.zeros(3), np.arange(3)).value is None
    assert s.quantiles(none, [0.5], index)[0].value is None


def test_certain_proportions_are_not_zero_wide() -> None:
    found = s.proportion(np.full(4, 25.0), np.full(4, 25.0), np.arange(4))
    assert found.value == 1.0 and found.low == pytest.approx(1 - 0.037, abs=1e-3) and found.high == 1.0

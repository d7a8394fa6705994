"""Intervals against formulas of our own and scipy's; what they cover is in test_interval_coverage."""

import math

import numpy as np
import pytest
import scipy.stats as st

from qconvert_evals import statistics as s
from qconvert_evals.statistics import spread
from tests.evals import own_formulas


def documents_of(sizes: list[int]) -> s.Index:
    return np.repeat(np.arange(len(sizes)), sizes)


@pytest.mark.parametrize("df", [1, 2, 3, 4, 5, 10, 17, 100, 1000])
def test_t_quantile_is_students(df: int) -> None:
    assert own_formulas.t_within(s.t_quantile(df), df) == pytest.approx(0.95, rel=1e-9)


@pytest.mark.parametrize(("k", "n"), [(0, 20), (20, 20), (7, 20), (991, 1000)])
def test_wilson(k: int, n: int) -> None:
    expected = st.binomtest(k, n).proportion_ci(0.95, method="wilson")
    assert s.wilson(k, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_mean_of_few_or_many_single_token_documents_is_the_t_interval() -> None:
    for n in (spread.FEWEST - 1, spread.MOST + 1):
        values = np.random.default_rng(1).normal(size=n)
        found = s.mean(values, np.arange(n))
        low, high = st.t.interval(0.95, n - 1, loc=values.mean(), scale=st.sem(values))
        assert (found.value, found.low, found.high) == pytest.approx((values.mean(), low, high), rel=1e-9)


def test_the_interval_is_the_hull_of_t_and_written_out_bootstrap_t() -> None:
    values = np.random.default_rng(2).exponential(size=25)
    found = s.mean(values, np.arange(25))
    centred, error, t = values - values.mean(), st.sem(values), st.t.ppf(0.975, 24)
    drawn = []
    for counts in np.random.default_rng(s.SEED).multinomial(25, np.full(25, 1 / 25), size=s.RESAMPLES):
        resample = np.repeat(centred, counts)
        drawn.append(resample.mean() / st.sem(resample))
    drawn.sort()
    low, high = max(drawn[24], -2 * t), min(drawn[-25], 2 * t)  # the 25th of 999 has 2.5% of 1000 below it
    assert low < -t  # the long tail is on the right, so the t interval ends too soon there
    assert (found.low, found.high) == pytest.approx(
        (values.mean() - max(t, high) * error, values.mean() - low * error), rel=1e-9
    )


def test_intervals_of_several_estimates_at_once_are_those_of_each() -> None:
    sums = np.random.default_rng(3).normal(size=(20, 3)) ** 3
    together = spread.reach(sums)
    for place in range(3):
        alone = spread.reach(sums[:, place : place + 1])
        assert [one[place] for one in together] == pytest.approx([one[0] for one in alone], rel=1e-9)


def test_one_loud_document_widens_by_no_more_than_twice() -> None:
    """Most resamples without it do not vary at all; their t* is held."""
    values = np.zeros(20)
    values[3] = 1.0
    found, error = s.mean(values, np.arange(20)), st.sem(values)
    assert found.high == pytest.approx(0.05 + spread.REACH * st.t.ppf(0.975, 19) * error)
    assert found.low == pytest.approx(0.05 - st.t.ppf(0.975, 19) * error)


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


def test_correlation_and_rms() -> None:
    rng = np.random.default_rng(5)
    a = rng.normal(size=4000)
    b = a + rng.normal(size=4000)
    found = s.correlation(a, b, np.arange(4000))
    reference = st.pearsonr(a, b)
    assert found.value == pytest.approx(reference.statistic, rel=1e-12)
    expected = reference.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=3e-3)
    assert s.correlation(a, 2 * a, np.arange(4000)).high == 1.0
    assert s.correlation(a, np.ones(4000), np.arange(4000)).value is None
    assert s.root_mean_square(a, np.arange(4000)).value == pytest.approx(np.sqrt((a * a).mean()))


def test_woodruff_of_single_token_documents_is_that_of_a_share() -> None:
    """With one token a document the share below the quantile is a mean of zeros and ones."""
    values = np.random.default_rng(6).exponential(size=400)
    for level in (0.1, 0.5, 0.9):
        found = s.quantiles(values, [level], np.arange(400))[0]
        below = (values <= np.sort(values)[round(level * 400) - 1]).astype(float)
        share = s.mean(below, np.arange(400))
        assert share.low is not None and share.high is not None and below.mean() == level
        expected = np.quantile(values, [share.low, level, share.high])
        assert (found.low, found.value, found.high) == pytest.approx(tuple(expected), rel=1e-9)


def test_equal_values_at_the_quantile_belong_to_no_document_first() -> None:
    """Every document has the same values; the order of equals must not look like a spread of documents."""
    values = np.tile(np.repeat([0.0, 1.0, 2.0, 3.0], [4, 2, 1, 1]), 30)
    documents = documents_of([8] * 30)
    for level in (0.3, 0.6, 0.8):
        found = s.quantiles(values, [level], documents)[0]
        assert found.low == found.value == found.high


@pytest.mark.parametrize(
    "n, level, shown",
    [(999, 0.99, False), (1000, 0.99, True), (9_999, 0.999, False), (10_000, 0.999, True), (10_000, 0.001, True),
     (10_000, 1.0, False), (10_000, 0.0, False), (20, 0.5, True), (18, 0.5, False)],
)  # fmt: skip
def test_quantiles_without_ten_tokens_beyond_them_have_no_interval(n: int, level: float, shown: bool) -> None:
    values = np.random.default_rng(7).random(n)
    found = s.quantiles(values, [level], np.arange(n) % min(n, 50))[0]
    assert found.value is not None and (found.low is not None) is shown and (found.high is not None) is shown


def test_a_quantile_beyond_the_data_has_no_interval() -> None:
    """All large values are in one of ten documents: the share beyond them may as well be zero."""
    values = np.concatenate([np.random.default_rng(8).random(1800), 10 + np.arange(200.0)])
    documents = documents_of([200] * 10)
    found = s.quantiles(values, [0.5, 0.98], documents)
    assert found[0].low is not None and found[1].value is not None and found[1].high is None
    assert s.quantiles(values, [0.5], documents // 2)[0].low is None  # five documents are too few


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


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_certain_proportions_count_documents(share: float) -> None:
    """Wilson's interval on what the trials are worth; ten times the tokens of the same documents add little."""
    few, many = (
        s.proportion(np.full(40, share * tokens), np.full(40, float(tokens)), np.arange(40)) for tokens in (25, 250)
    )
    for found, tokens in ((few, 25), (many, 250)):
        trials = 40 * tokens / (1 + (tokens - 1) * 0.05)
        assert found.value == share and trials < 40 / 0.05
        assert (found.low, found.high) == pytest.approx(own_formulas.wilson(share * trials, trials), abs=1e-9)
    by_token = own_formulas.wilson(share * 10_000, 10_000)
    assert many.low is not None and many.high is not None
    assert many.high - many.low > 10 * (by_token[1] - by_token[0])


def test_one_trial_a_document_is_one_trial() -> None:
    found = s.proportion(np.zeros(30), np.ones(30), np.arange(30))
    assert (found.low, found.high) == pytest.approx(own_formulas.wilson(0, 30), abs=1e-9)


def test_pairs_that_all_agree_have_an_interval() -> None:
    """Thirty answers that never differ exclude no loss of ten points; without the rule their interval has no width."""
    same = np.ones(30)
    found = s.difference(same, same, np.arange(30))
    assert found.value == 0 and found.high == pytest.approx(1 - 0.05 ** (1 / 30)) and found.low == -found.high
    clustered = s.difference(np.ones(3000), np.ones(3000), np.arange(3000) // 100)
    assert clustered.high == pytest.approx(1 - 0.05 ** (1 / (3000 / (1 + 99 * 0.05))))
    one = np.where(np.arange(30) == 4, 0.0, 1.0)
    assert s.difference(one, same, np.arange(30)) == s.mean(one - same, np.arange(30))
    assert s.difference(same, same, np.zeros(30, dtype=np.int64)).low is None


def test_a_share_stays_within_its_range() -> None:
    rare = np.zeros(2000)
    rare[7] = 1.0
    found = s.proportion(rare, np.ones(2000), np.arange(2000) // 100)
    assert found.low == 0.0 and found.high is not None and 3 / 2000 < found.high < 6 / 2000
    assert math.isclose(s.proportion(1 - rare, np.ones(2000), np.arange(2000) // 100).low or 0, 1 - found.high)

"""Two-sided bounds, what would decide an open row, and improvements by name."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qconvert.errors import UserError
from qconvert_evals.results import Measurement, Results
from qconvert_reports.budget import Budget, parse_budget
from qconvert_reports.decision import FAIL, IMPROVED, INCONCLUSIVE, PASS, Decision, decide
from qconvert_reports.drift import EXIT_CODES, judge, settle
from qconvert_reports.judged import Judged
from qconvert_reports.junit import render_junit
from qconvert_reports.rules import AT_LEAST, BOUNDS, WITHIN, Rule
from tests.reports.synthetic import synthetic_results
from tests.reports.test_drift import budget, one

DIFFERENCE = "mtp.acceptance_greedy_difference"


def rule(bound: str, min_n: int = 0) -> Rule:
    return Rule("x", "a.b", "all", bound, 0.0, "test", min_n=min_n)


def number(value: float, half: float, limit: float, n: int = 1000) -> Judged:
    return Judged(value, value - half, value + half, limit, n, True)


def with_pair(value: float, half: float, floor: float | None = 0.0, n: int = 9000) -> Results:
    """The synthetic record with a paired difference of acceptance at step 1."""
    pair = Measurement(DIFFERENCE, "fp8", "position=1", value, "fraction", n, value - half, value + half, floor)
    results = synthetic_results(layers=1)
    return replace(results, measurements=[*results.measurements, pair])


def paired_rule(bound: str) -> Budget:
    return budget(bound, "mtp.acceptance_greedy", 'unit = "pp"\nslice = "position=1"')


@pytest.mark.parametrize(
    ("value", "half", "status"),
    [
        (0.0, 0.019, "pass"),
        (0.004, 0.005, "pass"),
        (0.018, 0.005, "inconclusive"),
        (-0.018, 0.005, "inconclusive"),
        (0.0, 0.03, "inconclusive"),
        (0.03, 0.005, "fail"),
        (-0.03, 0.005, "fail"),
    ],
)
def test_two_sided_difference(value: float, half: float, status: str) -> None:
    row = one(with_pair(value, half), paired_rule("max_abs_difference_from_base = 2.0"))
    assert row.status == status
    assert row.bound.startswith("within ±2.00")


def test_multiples_of_noise_both_ways() -> None:
    results = synthetic_results()  # kl_mean 0.003 [0.0027, 0.0033], its noise floor 0.00006
    assert one(results, budget("min_times_noise = 40")).status == "pass"
    assert one(results, budget("min_times_noise = 60")).status == "fail"
    two_sided = budget("max_abs_times_noise = 3", DIFFERENCE, 'slice = "position=1"')
    for sign in (1, -1):  # the floor of a difference has a sign, its size is the scale
        assert one(with_pair(sign * 0.002, 0.0005, -0.001), two_sided).status == "pass"
        assert one(with_pair(sign * 0.005, 0.0005, -0.001), two_sided).status == "fail"
    silent = one(with_pair(0.002, 0.0005, 0.0), two_sided)
    assert silent.status == "inconclusive"
    assert "exactly 0" in silent.reason


@pytest.mark.parametrize(
    ("value", "status"), [(0.04, "pass"), (-0.04, "pass"), (0.06, "fail"), (-0.06, "fail"), (0.05, "inconclusive")]
)
def test_a_value_that_should_be_zero_is_bounded_both_ways(value: float, status: str) -> None:
    gap = Measurement("mtp.live_replay_gap", "fp8", "position=1", value, "fraction", 240, value - 0.005, value + 0.005)
    rules = budget("max_abs = 5", gap.name, 'unit = "pp"\nslice = "position=1"')
    row = one(Results(lanes=synthetic_results(layers=1).lanes, measurements=[gap]), rules)
    assert (row.status, row.bound) == (status, "within ±5.00 pp")
    assert f"{100 * value:+.2f} pp" in row.reason


@pytest.mark.parametrize("row", ["max_abs = -1", "max_abs_difference_from_base = -1"])
def test_a_negative_distance_is_refused(row: str) -> None:
    with pytest.raises(UserError, match="negative distance"):
        budget(row)


@given(
    st.sampled_from(sorted(BOUNDS)),
    st.floats(-0.1, 0.1),
    st.floats(0.001, 0.2),
    st.floats(0.001, 0.1),
    st.integers(50, 50_000),
)
def test_the_samples_that_a_row_asks_for_do_decide_it(
    bound: str, value: float, half: float, limit: float, n: int
) -> None:
    side = BOUNDS[bound][0]
    limit = -limit if side == AT_LEAST else limit
    first = decide(rule(bound), number(value, half, limit, n), "a.b")
    if first.status != INCONCLUSIVE:
        assert first.needed_n is None
        return
    gap = min(abs(value - limit), abs(value + limit)) if side == WITHIN else abs(value - limit)
    if first.needed_n is None:
        assert gap * 1e5 < half
        return
    assert first.needed_n >= n
    shrunk = half * math.sqrt(n / first.needed_n) * (1 - 1e-9)
    assert decide(rule(bound), number(value, shrunk, limit, first.needed_n), "a.b").status in (PASS, FAIL)
    less = half * math.sqrt(n / (0.85 * first.needed_n))  # a tenth at most is rounding up
    if 0.85 * first.needed_n > n:
        assert decide(rule(bound), number(value, less, limit, n), "a.b").status == INCONCLUSIVE


def test_an_open_row_says_how_many_samples_it_needs() -> None:
    row = one(synthetic_results(), budget("max = 0.0031"))  # half-width 0.0003, distance 0.0001: nine times 20,480
    assert row.needed_n == 190_000
    assert "needs about 190,000 tokens" in row.reason
    assert (row.n, row.decided) == (20480, "the 95% interval straddles the bound")
    on_it = one(synthetic_results(), budget("max = 0.003"))
    assert on_it.needed_n is None
    assert "no number of tokens decides" in on_it.reason


def test_answers_that_never_differ_prove_only_as_much_as_their_number() -> None:
    rules = paired_rule("min_difference_from_base = -1.0")
    few = one(with_pair(0.0, 0.0, n=30), rules)
    assert few.status == "inconclusive"
    assert few.ci[1] == pytest.approx(1 - 0.05 ** (1 / 30))
    assert few.needed_n == 290  # 0.095 / 0.01 * 30, upwards
    assert one(with_pair(0.0, 0.0, n=300), rules).status == "pass"


@pytest.mark.parametrize(
    ("value", "half", "floor", "status"),
    [(0.01, 0.004, 0.0, IMPROVED), (0.01, 0.004, -0.007, PASS), (0.01, 0.012, 0.0, PASS), (-0.01, 0.004, 0.0, PASS)],
)
def test_better_beyond_noise_is_named_and_passes(value: float, half: float, floor: float, status: str) -> None:
    results = with_pair(value, half, floor)
    row = one_or_improved(results, paired_rule("min_difference_from_base = -2.0"))
    assert row == status
    root = render_junit(results)
    assert "<skipped" not in root and "<failure" not in root
    assert ('value="improved"' in root) is (status == IMPROVED)


def one_or_improved(results: Results, rules: Budget) -> str:
    verdict = settle(results, rules)
    assert verdict.status == PASS
    assert EXIT_CODES[verdict.status] == 0
    return verdict.rows[0].status


def test_a_few_samples_are_no_improvement() -> None:
    rules = paired_rule("min_difference_from_base = -2.0")
    assert one_or_improved(with_pair(0.1, 0.06, n=52), rules) == PASS
    assert one_or_improved(with_pair(0.1, 0.06, n=100), rules) == IMPROVED


def test_a_ratio_improves_below_one() -> None:
    ratio = Measurement("logits.ppl_ratio", "fp8", "all", 0.995, "ratio", 20480, 0.994, 0.996, 0.9999)
    results = synthetic_results(layers=1)
    rows = [ratio if (m.name, m.lane, m.slice) == (ratio.name, "fp8", "all") else m for m in results.measurements]
    rules = budget("max = 1.01", "logits.ppl_ratio")
    assert judge(replace(results, measurements=rows), rules).rows[0].status == IMPROVED


def test_few_samples_and_lonely_documents() -> None:
    assert decide(rule("max", 5000), number(0.0, 0.1, 1.0), "a.b") == Decision(
        INCONCLUSIVE, "fewer samples than the row demands", 5000
    )
    lonely = replace(number(0.0, 0.0, 1.0), interval_known=False)
    assert decide(rule("max"), lonely, "a.b").status == INCONCLUSIVE
    assert decide(rule("max"), replace(lonely, limit=-1.0), "a.b").status == FAIL


def test_every_row_says_what_decided_it() -> None:
    results = synthetic_results(lanes=("fp8", "int4"))
    for row in settle(results, parse_default()).rows:
        assert row.decided
    skipped = budget("max = 1", "logits.kl_typo")
    assert judge(results, skipped).rows[0].decided == "nobody has this measurement"


def parse_default() -> Budget:
    from qconvert_reports.budget import default_budget

    return default_budget()


def test_an_unknown_bound_key_is_refused() -> None:
    with pytest.raises(UserError, match="unknown key"):
        parse_budget('version = 1\n[x]\nlanes=["*"]\n[[x.rows]]\nmeasurement="a"\nmax_times_noises=1\nwhy="w"', "b")

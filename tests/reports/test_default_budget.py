"""The default budget: rows that agree with one another, overlaps that know k and E, positions beyond the text."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from itertools import pairwise

import numpy as np
import pytest

from qconvert.errors import UserError
from qconvert_evals.results import Measurement, Results
from qconvert_reports.budget import DEFAULT, default_budget
from qconvert_reports.drift import judge
from qconvert_reports.published import CURVE, companions
from qconvert_reports.routing_noise import expected_overlap
from qconvert_reports.rules import Rule
from tests.reports.synthetic import synthetic_results
from tests.reports.test_drift import budget, one

ANCHORS = {"fp8": 0.015, "int4": 0.08}


def rule(section: str, measurement: str, slice_: str = "all") -> Rule:
    (rules,) = [one.rules for one in default_budget().sections if one.name == section]
    (found,) = [one for one in rules if (one.measurement, one.slice) == (measurement, slice_)]
    return found


def test_the_curve_goes_through_the_published_table() -> None:
    for kl, other, log_ratio in CURVE:
        assert companions(kl).top1_agreement == pytest.approx(1 - other)
        assert np.log(companions(kl).ppl_ratio) == pytest.approx(log_ratio)
    between = companions(0.0108)  # q5_K_M, which has a perplexity in the other table: 6.288607 / 6.231634
    assert between.ppl_ratio == pytest.approx(6.288607 / 6.231634, abs=0.0025)


def test_drift_that_grows_shows_in_every_number() -> None:
    found = [companions(kl) for kl in np.geomspace(1e-5, 1.0, 60)]
    for before, after in pairwise(found):
        assert before.top1_agreement > after.top1_agreement
        assert before.ppl_ratio < after.ppl_ratio and before.kl_p99 < after.kl_p99


@pytest.mark.parametrize("section", ANCHORS)
def test_rows_over_all_text_are_made_from_one_divergence(section: str) -> None:
    kl = ANCHORS[section]
    expected = companions(kl)
    assert rule(section, "logits.kl_mean").limit == kl
    assert rule(section, "logits.kl_mean", "domain=*").limit == pytest.approx(expected.kl_part)
    assert rule(section, "logits.kl_mean", "at=*").limit == pytest.approx(expected.kl_part)
    assert rule(section, "logits.kl_p99").limit == pytest.approx(expected.kl_p99)
    assert rule(section, "logits.top1_agreement").limit == pytest.approx(100 * expected.top1_agreement, abs=0.05)
    assert rule(section, "logits.ppl_ratio").limit == pytest.approx(expected.ppl_ratio, abs=5e-4)
    assert rule(section, "bench.*perplexity_recovery").limit == rule(section, "logits.ppl_ratio").limit


def test_int4_has_a_row_for_what_fp8_has_or_says_why_not() -> None:
    rows = {one.name: {(rule.measurement, rule.slice) for rule in one.rules} for one in default_budget().sections}
    text = files("qconvert_reports").joinpath(DEFAULT).read_text(encoding="utf-8")
    reason = text.partition("# What FP8 has and this section has not: ")[2].partition("\n\n")[0]
    for measurement, _ in rows["fp8"] - rows["int4"]:
        assert measurement in reason


def simulated(chosen: int, experts: int, noise: float) -> float:
    """Another generator, sets instead of masks."""
    source = np.random.default_rng(11)
    logits = source.standard_normal((3000, experts))
    moved = logits + noise * source.standard_normal((3000, experts))
    pairs = zip(np.argsort(-logits)[:, :chosen], np.argsort(-moved)[:, :chosen], strict=True)
    return float(np.mean([len(set(a) & set(b)) for a, b in pairs])) / chosen


@pytest.mark.parametrize(("chosen", "experts"), [(4, 16), (8, 128), (10, 512)])
def test_overlap_under_noise(chosen: int, experts: int) -> None:
    for noise in (0.04, 0.156):
        assert expected_overlap(chosen, experts, noise) == pytest.approx(simulated(chosen, experts, noise), abs=0.006)


def test_overlap_falls_with_noise_and_with_experts() -> None:
    assert round(expected_overlap(4, 16, 0.04), 3) == pytest.approx(0.973, abs=0.002)
    assert round(expected_overlap(10, 512, 0.04), 3) == pytest.approx(0.952, abs=0.002)
    falling = [expected_overlap(10, 512, noise) for noise in (0.0, 0.02, 0.053, 0.106, 0.5, 5.0)]
    assert falling[0] == 1.0 and falling == sorted(falling, reverse=True)
    assert expected_overlap(8, 8, 0.3) == 1.0
    with pytest.raises(ValueError):
        expected_overlap(9, 8, 0.1)


OVERLAP = ('slice = "feed=local"', "router.topk_overlap", "min_overlap_at_noise = 0.053")


def overlapping(value: float, experts: int | None = 512, chosen: int = 10) -> Results:
    results = synthetic_results(layers=1)
    rows = [m for m in results.measurements if (m.name, m.slice) != ("router.topk_overlap", "feed=local")]
    rows += [
        Measurement("router.topk_overlap", lane, "feed=local", value, "fraction", 9000, value - 0.002, value + 0.002)
        for lane in ("bf16-noise", "fp8")
    ]
    model = {} if experts is None else {"experts": experts, "experts_chosen": chosen}
    return replace(results, measurements=rows, figures={**results.figures, "model": model})


def test_the_bound_is_the_models_own() -> None:
    extra, name, bound = OVERLAP
    rows = {
        key: one(overlapping(0.95, *key), budget(bound, name, extra)) for key in ((512, 10), (16, 4))
    }  # 93.8% of 10 of 512, 96.6% of 4 of 16
    assert rows[512, 10].status == "pass" and rows[16, 4].status == "fail"
    assert "0.053 noise, 10 of 512 experts" in rows[512, 10].bound


def test_an_unknown_router_decides_nothing() -> None:
    extra, name, bound = OVERLAP
    row = one(overlapping(0.99, None), budget(bound, name, extra))
    assert row.status == "inconclusive" and "how many experts" in row.reason


def test_noise_has_no_sign() -> None:
    with pytest.raises(UserError, match="noise has no sign"):
        budget("min_overlap_at_noise = -0.1", "router.topk_overlap")


def along(longest: int | None, context: int = 262_144) -> Results:
    results = synthetic_results(stretches=("0-127", "128-255"))
    model = {**results.figures["model"], "context": context}
    tool = results.tool if longest is None else {**results.tool, "longest_sequence": longest}
    return replace(results, tool=tool, figures={**results.figures, "model": model})


def test_positions_beyond_the_text_are_not_passed() -> None:
    rows = [row for row in judge(along(256), default_budget()).rows if row.slice.startswith("at=")]
    assert [(row.slice, row.status) for row in rows if row.measurement == "logits.kl_mean"] == [
        ("at=0-127", "pass"), ("at=128-255", "pass"), ("at=256-262143", "not applicable"),
    ]  # fmt: skip
    assert rows[-1].reason == "not measured: the longest sequence has 256 tokens, the context 262,144"


def test_nothing_is_left_where_the_text_fills_the_context() -> None:
    for results in (along(4096, 4096), along(None)):  # and where the record does not say
        assert not [row for row in judge(results, default_budget()).rows if "not measured: the longest" in row.reason]


def test_a_row_along_the_context_without_any_position_stays_open() -> None:
    results = along(100)
    results = replace(results, measurements=[m for m in results.measurements if not m.slice.startswith("at=")])
    rows = judge(results, budget("max = 0.03", "logits.kl_mean", 'slice = "at=*"')).rows
    assert "inconclusive" in {row.status for row in rows}

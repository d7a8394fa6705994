"""A candidate with a noise lane of its own: what reads noise floors reads the right one, and tables name them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qconvert_evals.results import Measurement, Results
from qconvert_reports import view
from qconvert_reports.benchmarks_view import benchmark_lines, benchmark_tables
from qconvert_reports.budget import default_budget
from qconvert_reports.drift import settle
from qconvert_reports.html import render_html
from qconvert_reports.judged import Judged, judged
from qconvert_reports.likeness import key
from qconvert_reports.markdown import render_markdown
from qconvert_reports.plots import lane_colour
from qconvert_reports.record import Record
from qconvert_reports.rules import Rule
from qconvert_reports.suspicion import too_good
from tests.reports.synthetic import synthetic_results
from tests.reports.test_benchmarks import row

GREEDY = "mtp.acceptance_greedy"


def with_own_noise(factor: float = 2.75) -> Results:
    """fp8 beside a noise lane of its own, whose distances from it are larger than those of BF16's by the factor."""
    made = synthetic_results(lanes=("fp8", "int4"))
    by_key = {(m.name, m.slice): m for m in made.measurements if m.lane == "fp8"}
    own = []
    for one in made.measurements:
        if one.lane == "bf16-noise" and one.value is not None:
            near = by_key[one.name, one.slice].value if one.name == GREEDY else None
            value = one.value * factor if one.name == "logits.kl_mean" else one.value if near is None else near - 0.003
            own.append(replace(one, lane="fp8-noise", value=value))
    floors = {(m.name, m.slice): m.value for m in own}
    rows = [replace(m, noise_floor=floors.get((m.name, m.slice))) if m.lane == "fp8" else m for m in made.measurements]
    fp8 = next(one for one in made.lanes if one.name == "fp8")
    lanes = [replace(one, noise_lane="fp8-noise") if one is fp8 else one for one in made.lanes]
    lanes.append(replace(fp8, name="fp8-noise", role="noise", noise_lane=None))
    return replace(made, lanes=lanes, measurements=[*rows, *own])


def test_only_bf16s_noise_lane_says_what_bf16_has() -> None:
    results = with_own_noise()
    record = Record(results)
    assert record.references == ["bf16", "bf16-noise"]
    extra = Measurement("logits.kl_mean", "fp8-noise", "domain=new", 1e-4, "nats", 9, 5e-5, 2e-4)
    before = settle(results, default_budget())
    after = settle(replace(results, measurements=[*results.measurements, extra]), default_budget())
    assert [one.status for one in before.rows] == [one.status for one in after.rows]


@pytest.mark.parametrize(("lane", "noise"), [("fp8", 0.003), ("int4", 0.4e-3 * 0.02)])
def test_noise_of_a_difference_is_the_distance_from_the_lane_itself(lane: str, noise: float) -> None:
    """For fp8 its own noise lane against fp8, for int4 BF16's against BF16."""
    record = Record(with_own_noise())
    rule = Rule("test", GREEDY, "position=1", "min_difference_from_base", -0.02, "test")
    one = record.measured(GREEDY, lane, "position=1")
    assert one is not None
    number = judged(record, rule, one, -0.02)
    assert isinstance(number, Judged) and number.noise == pytest.approx(noise)


def test_too_good_is_judged_by_the_floor_of_the_own_kind() -> None:
    """Half of 6e-5 leaves a mean KL of 5e-5 in peace; half of fp8's own floor, 1.65e-4, does not."""
    for factor, found in ((1.0, False), (2.75, True)):
        results = with_own_noise(factor)
        rows = [
            replace(m, value=5e-5, ci_low=4e-5, ci_high=6e-5)
            if (m.name, m.lane, m.slice) == ("logits.kl_mean", "fp8", "all")
            else m
            for m in results.measurements
        ]
        signs = too_good(Record(replace(results, measurements=rows)), "fp8")
        assert any("noise floor" in one.reason for one in signs) == found


def test_tables_name_both_noise_lanes() -> None:
    index = view.Index(with_own_noise())
    assert index.noise == ["bf16-noise", "fp8-noise"]
    table = view.logits_table(index)
    assert table.columns[-2:] == ("noise floor", "noise floor, fp8")
    mean = next(line for line in table.rows if line[0].text == "KL divergence from BF16, mean")
    assert (mean[-2].text, mean[-1].text) == ("6.00e-05", "1.65e-04")
    lanes = [line[1].text for line in view.router_tables(index)[0].rows[:4]]
    assert lanes == ["fp8", "int4", "noise floor", "noise floor, fp8"]
    assert lane_colour(index.results, "fp8-noise") != lane_colour(index.results, "bf16-noise")


def test_pages_hold_both_and_benchmarks_pair_each_with_its_own() -> None:
    results = with_own_noise()
    results.figures["tasks"] = {"rows": [row(), row(noise=True, lane="bf16-noise"), row(noise=True, lane="fp8-noise")]}
    (asked, _, _), lines = benchmark_tables(view.Index(results)), benchmark_lines(view.Index(results))
    assert [line[1].text for line in asked.rows] == ["fp8", "noise floor", "noise floor, fp8"]
    assert [line[3].text == "–" for line in asked.rows] == [False, False, True]  # its pair is fp8, not BF16
    assert len(lines) == 1
    settle(results, default_budget())
    for page in (render_html(results), render_markdown(results)):
        assert "noise floor, fp8" in page


def test_a_history_is_not_broken_by_another_noise_lane() -> None:
    assert key(with_own_noise()) == key(synthetic_results(lanes=("fp8", "int4")))

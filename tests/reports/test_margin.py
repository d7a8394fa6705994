"""Margins: how far a decision is from another one, where it is shown, and the gate on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from qconvert.cli import main
from qconvert_evals.results import Results
from qconvert_reports.budget import default_budget
from qconvert_reports.decision import FAIL, INCONCLUSIVE, PASS, THIN, decide, margin
from qconvert_reports.drift import settle
from qconvert_reports.html import render_html
from qconvert_reports.judged import Judged
from qconvert_reports.junit import render_junit
from qconvert_reports.markdown import render_markdown
from qconvert_reports.rules import AT_LEAST, AT_MOST, WITHIN, Rule
from qconvert_reports.terminal import verdict_lines
from qconvert_reports.verdict_view import groups, is_thin, margin_line, thinnest
from tests.reports.synthetic import synthetic_results
from tests.reports.test_drift import budget


def number(low: float, high: float, limit: float, known: bool = True) -> Judged:
    return Judged((low + high) / 2, low, high, limit, 1000, known)


@pytest.mark.parametrize(
    ("side", "low", "high", "limit", "expected"),
    [
        (AT_MOST, 1.0, 3.0, 5.0, 2.0),  # two half-widths of one to spare
        (AT_MOST, 7.0, 9.0, 5.0, -2.0),
        (AT_MOST, 4.0, 6.0, 5.0, 0.0),
        (AT_LEAST, 7.0, 9.0, 5.0, 2.0),
        (AT_LEAST, 1.0, 3.0, 5.0, -2.0),
        (AT_LEAST, 4.0, 6.0, 5.0, 0.0),
        (WITHIN, -1.0, 3.0, 5.0, 1.0),  # the nearer of both sides
        (WITHIN, -3.0, 1.0, 5.0, 1.0),
        (WITHIN, 6.0, 8.0, 5.0, -1.0),
        (WITHIN, -8.0, -6.0, 5.0, -1.0),
        (WITHIN, -6.0, -4.0, 5.0, 0.0),
        (WITHIN, -6.0, 6.0, 5.0, 0.0),
    ],
)
def test_half_widths_between_interval_and_bound(
    side: str, low: float, high: float, limit: float, expected: float
) -> None:
    assert margin(number(low, high, limit), side) == pytest.approx(expected)


def test_no_interval_no_margin() -> None:
    assert margin(number(1.0, 1.0, 5.0), AT_MOST) is None
    assert margin(number(1.0, 3.0, 5.0, known=False), AT_MOST) is None


@given(
    st.sampled_from(("max", "min", "max_abs_difference_from_base")),
    st.floats(-10, 10), st.floats(0.001, 10), st.floats(0, 10),
)  # fmt: skip
def test_its_sign_is_the_status(bound: str, value: float, half: float, limit: float) -> None:
    rule = Rule("x", "a.b", "all", bound, limit, "test")
    decision = decide(rule, number(value - half, value + half, limit), "a.b")
    assert decision.margin is not None
    if decision.status == FAIL:
        assert decision.margin < 0
    elif decision.status == INCONCLUSIVE:
        assert decision.margin == 0
    else:
        assert decision.status == PASS and decision.margin >= 0


def judged(half: float) -> Results:
    """The synthetic record, whose mean KL has this half-width, judged by it alone."""
    results = synthetic_results()
    rows = [
        replace(one, ci_low=one.value - half, ci_high=one.value + half)
        if (one.name, one.lane, one.slice) == ("logits.kl_mean", "fp8", "all") and one.value is not None
        else one
        for one in results.measurements
    ]
    results = replace(results, measurements=rows)
    settle(results, budget("max = 0.015"))
    return results


def test_it_stands_in_every_rendering() -> None:
    results = judged(0.008)  # 0.003 + 0.008 leaves half a half-width
    assert results.verdict is not None and results.verdict.status == "pass"
    worst = thinnest(results.verdict.rows)
    assert worst is not None and worst.measurement == "logits.kl_mean" and worst.margin == pytest.approx(0.5)
    assert is_thin(worst)
    line = margin_line(results.verdict)
    assert line == "smallest margin 0.50 half-widths: fp8 logits.kl_mean (all); 1 under 1.5"
    assert line in [str(text) for text in verdict_lines(results)]
    html = render_html(results)
    assert 'data-name="margin" class="thin">0.50<span class="ci">thin</span>' in html
    assert line[1:] in html
    markdown = render_markdown(results)
    assert "0.50 (thin)" in markdown and markdown.count("(thin)") == 1
    assert 'name="margin" value="0.5' in render_junit(results)


def test_a_group_shows_the_smallest_of_its_slices() -> None:
    results = synthetic_results()
    settle(results, default_budget())
    for group in groups(results):
        margins = [row.margin for row in group.rows if row.margin is not None]
        assert (group.thinnest.margin if group.thinnest else None) == (min(margins) if margins else None)


@pytest.mark.parametrize(("half", "asked", "code"), [(0.008, "1.5", 3), (0.008, "0.4", 0), (0.002, str(THIN), 0)])
def test_min_margin_gates(tmp_path: Path, half: float, asked: str, code: int) -> None:
    judged(half).save(tmp_path / "results.json")
    found = CliRunner().invoke(main, ["report", str(tmp_path / "results.json"), "--min-margin", asked])
    assert found.exit_code == code, found.output
    assert ("too near the bound" in found.output) == (code == 3)


def test_min_margin_hides_no_failure(tmp_path: Path) -> None:
    results = judged(0.0003)
    assert results.verdict is not None
    results.verdict = replace(results.verdict, status="fail")
    results.save(tmp_path / "results.json")
    assert CliRunner().invoke(main, ["report", str(tmp_path), "--min-margin", "99"]).exit_code == 1

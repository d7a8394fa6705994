"""48 layers, 512 experts, three lanes, six domains, healthy and broken everywhere: it fits where it goes."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest

from qconvert_evals.results import Measurement, Missing, Results
from qconvert_reports import html, position_plots
from qconvert_reports.budget import default_budget
from qconvert_reports.drift import settle
from qconvert_reports.html import render_html
from qconvert_reports.junit import render_junit
from qconvert_reports.markdown import COMMENT_LIMIT, NOTICE, SUMMARY_LIMIT, render_markdown, render_summary
from qconvert_reports.tables import csv_tables
from tests.reports.synthetic import synthetic_results

LANES = ("fp8", "int4", "int4-awq")
DOMAINS = ("code", "math", "prose", "recall", "deutsch", "中文")
STRETCHES = ("0-127", "128-255", "256-511", "512-1023", "1024-2047", "2048-4095", "4096-8191", "8192-16383")
HTML_LIMIT = 3_000_000  # bytes: what a phone opens in a second or two


def large() -> Results:
    """With the file lists and the tables of worst tensors that an 80B model has."""
    results = synthetic_results(layers=48, lanes=LANES, domains=DOMAINS, stretches=STRETCHES)
    shards = {f"model-{number:05}-of-00041.safetensors": f"{number:064x}" for number in range(1, 42)}
    results.lanes = [replace(one, files=one.files | shards) for one in results.lanes]
    experts = [
        f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight"
        for layer in range(48)
        for expert in range(512)
        for part in ("gate", "up", "down")
    ]
    results.figures["weights_missing"] = {"int4-awq": experts}
    return results


@pytest.fixture(scope="module")
def healthy() -> Results:
    results = large()
    settle(results, default_budget())
    return results


@pytest.fixture(scope="module")
def broken() -> Results:
    """Everything moved far beyond its bound, and a thousand measurements are missing."""
    results = large()

    def worse(m: Measurement) -> Measurement:
        if m.value is None or m.lane.startswith("bf16"):
            return m
        value = m.value / 3 if m.unit == "fraction" else 3 * m.value + 1
        return replace(m, value=value, ci_low=0.99 * value, ci_high=1.01 * value)

    results.measurements = [worse(m) for m in results.measurements]
    results.missing += [
        Missing("router.margin_flipped", lane, f"layer={layer},feed={feed}", "no set of experts changed")
        for lane in LANES
        for layer in range(48)
        for feed in ("local", "free")
    ]
    settle(results, default_budget())
    assert results.verdict is not None
    assert sum(row.status == "fail" for row in results.verdict.rows) > 100
    return results


@pytest.mark.parametrize("which", ["healthy", "broken"])
def test_markdown_fits_comment_and_summary(which: str, request: pytest.FixtureRequest) -> None:
    results: Results = request.getfixturevalue(which)
    comment, summary = render_markdown(results), render_summary(results)
    assert len(comment) <= COMMENT_LIMIT
    assert len(summary.encode("utf-8")) <= SUMMARY_LIMIT
    for text in (comment, summary):
        assert text.count("<details>") == text.count("</details>")
        assert text.index("## ") < text.index("KL mean") < text.index("All checks")
        assert "By position in the context" in text
    assert NOTICE not in summary
    assert "By layer, own input" in summary
    assert "| layer 47, own input | fp8 |" in summary
    if which == "broken":
        assert "Every check that did not pass (1 to " in summary
        assert len(summary) > len(comment)


def test_a_summary_is_cut_by_bytes(broken: Results) -> None:
    for limit in (5_000, 30_000):
        text = render_summary(broken, limit=limit)
        assert len(text.encode("utf-8")) <= limit < len(render_summary(broken).encode("utf-8"))
        assert text.endswith(NOTICE)
        assert "## Fail" in text


def test_page_junit_and_tables_stay_small(broken: Results) -> None:
    page = render_html(broken)
    assert len(page.encode("utf-8")) < HTML_LIMIT
    assert page.count("<img") == 2 + 4 + 4 + 7  # histogram, positions; along the context; layers; drafting by domain
    assert "tokens 8192-16383" in page
    junit = render_junit(broken)
    assert len(junit) < 2_000_000
    assert broken.verdict is not None
    assert len(ET.fromstring(junit).findall(".//testcase")) == len(broken.verdict.rows)
    assert sum(map(len, csv_tables(broken).values())) < 3_000_000


def test_without_stretches_there_is_no_section(monkeypatch: pytest.MonkeyPatch) -> None:
    results = synthetic_results(layers=1)
    assert position_plots.along_context(results) == []
    monkeypatch.setattr(
        html.plots, "draw_plot", lambda title, caption, draw, lines: html.plots.Plot(title, caption, "")
    )
    assert 'id="position"' not in render_html(replace(results, figures={}))


def test_positions_are_drawn_with_their_lanes(healthy: Results) -> None:
    drawn = position_plots.along_context(healthy)
    assert len(drawn) == 4
    for plot in drawn:
        assert ">8192<" in plot.svg
        assert all(lane in plot.svg for lane in LANES)
    assert "bf16" in drawn[3].svg  # acceptance is also the base's

"""The benchmark table: what each finding takes, and that it stands in every rendering."""

from typing import Any

import pytest

from qconvert_reports.benchmarks_view import benchmark_lines, benchmark_tables, finding
from qconvert_reports.html import render_html
from qconvert_reports.markdown import render_markdown
from qconvert_reports.view import Index
from tests.reports.synthetic import synthetic_results


def row(**more: Any) -> dict[str, Any]:
    plain = {
        "task": "gsm8k", "metric": "exact_match", "filter": "none", "asked": True, "lane": "fp8", "noise": False,
        "unit": "fraction", "higher_is_better": True, "n": 1319, "base": [0.9, 0.88, 0.92], "score": [0.89, 0.87, 0.91],
        "difference": [-0.01, -0.02, 0.0], "recovery": [0.989, 0.98, 1.0], "p_value": 0.1, "p_holm": 0.2,
        "no_worse": 0.4, "no_worse_holm": 0.8, "margin": 0.01, "detectable": 0.0153, "lost": 40, "gained": 27,
    }  # fmt: skip
    return plain | more


@pytest.mark.parametrize(
    "more, words",
    [
        ({}, "cannot tell: sees 1.53 pp and more"),
        ({"p_holm": 0.049}, "differs"),
        ({"no_worse_holm": 0.049}, "no worse by 1.00 pp"),
        ({"no_worse": 0.01, "no_worse_holm": 0.06}, "cannot tell: sees 1.53 pp and more"),  # corrected over tasks
        ({"p_holm": 0.01, "no_worse_holm": 0.01}, "differs, no worse by 1.00 pp"),  # real, and small
        ({"p_value": 0.01, "p_holm": 0.06}, "cannot tell: sees 1.53 pp and more"),  # only the corrected p counts
        ({"detectable": None}, "cannot tell"),
        ({"p_value": None, "no_worse": None}, "nothing to pair"),
        ({"unit": "", "margin": 0.02, "no_worse_holm": 0.0}, "no worse by 0.02"),
        ({"clustered_by": "passage", "clusters": 40, "p_holm": 0.01}, "differs (40 clusters by passage)"),
        ({"asked": False, "no_worse": 0.01, "p_holm": None}, "part of its group's finding"),
    ],
)
def test_findings(more: dict[str, Any], words: str) -> None:
    assert finding(row(**more)) == words


def test_tables_and_renderings() -> None:
    results = synthetic_results()
    results.figures["tasks"] = {
        "rows": [
            row(noise=True, lane="bf16-noise", lost=1, gained=1),
            row(),
            row(task="mmlu<b>", metric="acc", filter="strict|match", lost=None, gained=None),
            row(task="mmlu_law", metric="acc", asked=False),
        ],
        "pooled": {
            "fp8": {"tasks": ["a", "b"], "clustered": ["race"], "n": 900, "lost": 30, "gained": 11, "p_value": 0.004},
            "bf16-noise": None,
        },
    }
    index = Index(results)
    asked, parts, thoughts = benchmark_tables(index)
    assert [[cell.text for cell in line[:2]] for line in asked.rows] == [
        ["gsm8k (exact_match)", "fp8"], ["", "noise floor"], ["mmlu<b> (acc, strict|match)", "fp8"],
        ["2 tasks together", "fp8"],
    ]  # fmt: skip
    together = "differs over all (exact p 0.004); without race, whose documents hang together"
    assert [cell.text for cell in asked.rows[3][2:]] == ["900", "–", "–", "–", together, "–", "–", "30 / 11"]
    assert asked.rows[0][5].text == "-1.00 pp" and asked.rows[0][5].interval == "[-2.00 pp, +0.00 pp]"
    assert asked.rows[0][9].text == "40 / 27" and asked.rows[2][9].text == "–"
    assert [line[0].text for line in parts.rows] == ["mmlu_law (acc)"] and not thoughts.rows
    assert (
        benchmark_lines(index)[0] == "gsm8k (exact_match), fp8: 89.00% (-1.00 pp): cannot tell: sees 1.53 pp and more"
    )
    assert benchmark_lines(index)[2:] == [f"2 tasks, fp8: {together}"]
    page, text = render_html(results), render_markdown(results)
    for one in (page, text):
        assert "40 / 27" in one and "cannot tell" in one
        assert "mmlu<b>" not in one
    assert 'id="benchmarks"' in page and "Parts of groups" in page
    assert "strict|match" not in text


def test_without_tasks_there_is_no_section() -> None:
    results = synthetic_results()
    assert 'id="benchmarks"' not in render_html(results)
    assert "Benchmarks" not in render_markdown(results)

"""No reader may take acceptance on a given text for that of real decoding: every place says which it shows."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from qconvert_evals.results import Results
from qconvert_reports import view
from qconvert_reports.html import render_html
from qconvert_reports.labels import LABELS, label
from qconvert_reports.markdown import render_markdown
from qconvert_reports.terminal import summary_table
from tests.reports.synthetic import synthetic_results

FORCED, LIVE = "tokens per step, forced", "tokens per step, live"


@pytest.fixture(scope="module")
def results() -> Results:
    made = synthetic_results(layers=1, lanes=("fp8", "int4"))
    sampling = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "unread": ["min_p"]}
    return replace(made, tool={**made.tool, "sampling": sampling})


def test_every_label_of_acceptance_says_forced_or_live() -> None:
    names = [name for name in LABELS if name.startswith(("mtp.accept", "mtp.live"))]
    assert len(names) >= 9
    for name in names:
        assert ("live" in label(name)) != ("teacher-forced" in label(name)), name
        assert ("live" in name) == ("live" in label(name)), name


def test_html_and_markdown_name_both(results: Results) -> None:
    page, comment = render_html(results), render_markdown(results)
    for text in (page, comment):
        assert "Greedy, teacher-forced on the documents" in text
        assert "greedy drafts at temperature 0.7, top-k 20, top-p 0.8; not applied: min_p" in text.replace("\\", "")
    assert FORCED in comment and LIVE in comment
    assert label("mtp.accept_length") in page and label("mtp.accept_length_live") in page


def test_columns_hold_what_their_heads_say(results: Results) -> None:
    table = view.summary(view.Index(results))
    for head, name in ((FORCED, "mtp.accept_length"), (LIVE, "mtp.accept_length_live")):
        row = results.find(name, "fp8")
        assert row is not None and row.value is not None
        (cells,) = [cells for cells in table.rows if cells[0].text == "fp8"]
        assert cells[table.columns.index(head)].text == f"{row.value:.4g}"


def test_the_terminal_table_fits_120_columns(results: Results) -> None:
    out = io.StringIO()
    Console(file=out, width=120).print(summary_table(results))
    assert "…" not in out.getvalue()
    heads = " ".join(out.getvalue().split("bf16")[0].split())
    assert heads.count("forced") == 2 and heads.count("live") == 1

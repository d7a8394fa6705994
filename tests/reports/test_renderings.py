"""HTML, Markdown, JUnit, CSV and the folder: complete, within their limits, and harmless whatever the names are."""

from __future__ import annotations

import csv
import io
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from qconvert.errors import UserError
from qconvert_evals.results import LaneIdentity, Measurement, Missing, Results
from qconvert_reports import plots
from qconvert_reports.baseline import against
from qconvert_reports.budget import default_budget
from qconvert_reports.drift import settle
from qconvert_reports.folder import write_report
from qconvert_reports.html import render_html, visible
from qconvert_reports.junit import render_junit
from qconvert_reports.markdown import COMMENT_LIMIT, NOTICE, escape, render_markdown
from qconvert_reports.tables import csv_tables
from tests.reports.synthetic import synthetic_results

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>|`@all`\n$\\frac{1}{2}$ {{7*7}} \x00\x1b"


def judged(results: Results | None = None) -> Results:
    results = results or synthetic_results()
    settle(results, default_budget())
    return results


class Page(HTMLParser):
    """Tags and attributes as a browser would see them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def healthy() -> Results:
    return judged()


@pytest.fixture(scope="module")
def plain(healthy: Results) -> Results:
    """The healthy record without anything to plot, so that a folder is written in no time."""
    skipped = ("router.", "hidden.", "mtp.")
    rows = [m for m in healthy.measurements if not m.name.startswith(skipped)]
    return replace(healthy, measurements=rows, figures={"budget": healthy.figures["budget"]})


@pytest.fixture(scope="module")
def page(hostile: Results) -> Page:
    """The hostile record's page."""
    return Page(render_html(hostile))


@pytest.fixture(scope="module")
def big() -> Results:
    """48 layers and three lanes, one of them broken in every layer."""
    results = synthetic_results(layers=48, lanes=("fp8", "int4"))
    broken = [
        replace(m, value=0.4, ci_low=0.39, ci_high=0.41) if m.lane == "fp8" and m.name == "router.topk_overlap" else m
        for m in results.measurements
    ]
    return judged(replace(results, measurements=broken))


@pytest.fixture(scope="module")
def hostile() -> Results:
    """Every text that comes from a file or a user is an attack."""
    results = synthetic_results(layers=1)
    results.lanes = [hostile_lane(lane) for lane in results.lanes]
    results.measurements = [replace(m, lane=rename(m.lane)) for m in results.measurements]
    results.measurements.append(
        Measurement("logits.kl_mean", rename("fp8"), f"domain={HOSTILE}", 9.0, HOSTILE, 5, 8.0, 10.0)
    )
    results.measurements.append(Measurement(f"bench.{HOSTILE}", rename("fp8"), "all", 9.0, "", 5))
    results.missing = [Missing(HOSTILE, HOSTILE, HOSTILE, HOSTILE)]
    results.tool |= {"command": HOSTILE, HOSTILE: HOSTILE, "version": HOSTILE, "tokens": HOSTILE}
    results.created = HOSTILE
    figures = results.figures
    figures["kl_histogram"] = {rename(lane): one for lane, one in figures["kl_histogram"].items()}
    figures["worst_tokens"] = [
        {key: value if key in ("kl", "position") else HOSTILE for key, value in row.items()}
        for row in figures["worst_tokens"]
    ]
    figures["weights_worst"] = [{**row, "tensor": HOSTILE, "lane": HOSTILE} for row in figures["weights_worst"]]
    return judged(results)


def rename(lane: str) -> str:
    return f"fp8{HOSTILE}" if lane == "fp8" else lane


def hostile_lane(lane: LaneIdentity) -> LaneIdentity:
    return replace(
        lane,
        name=rename(lane.name),
        path=HOSTILE,
        revision=HOSTILE,
        files={HOSTILE: HOSTILE},
        recipe={"scheme": HOSTILE},
    )


def test_page_is_one_file_that_loads_and_runs_nothing(page: Page) -> None:
    assert not {"script", "iframe", "object", "embed", "link", "base", "form"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("data:image/svg+xml;base64,", "#")), tag
    assert any("default-src 'none'" in (attributes.get("content") or "") for _, attributes in page.tags)


def test_hostile_text_is_shown_as_text(page: Page) -> None:
    assert page.text.count("<script>alert(1)</script>") > 10
    assert "{{7*7}}" in page.text


def test_plots_hold_no_script_and_are_reproducible(hostile: Results) -> None:
    for plot in (*plots.kl_histogram(hostile), *plots.acceptance(hostile)):
        root = ET.fromstring(plot.svg)
        assert not [node for node in root.iter() if node.tag.endswith("script")]
    first, second = (plots.kl_histogram(judged())[0].svg for _ in range(2))
    assert first == second


def test_page_says_verdict_first_and_holds_every_part(big: Results) -> None:
    text = render_html(big)
    page = Page(text)
    head = page.text[page.text.index("qconvert drift report", 100) :]
    assert head.index("Fail") < head.index("Checks against the budget") < head.index("What was compared")
    for part in ("checks", "logits", "router", "mtp", "tokens", "weights", "missing", "lanes", "reproduce"):
        assert any(attributes.get("id") == part for _, attributes in page.tags), part
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 2 + 4 + 5  # histogram and positions; 2 measurements x 2 feeds; all text and 4 domains
    assert all(attributes.get("alt") for attributes in images)
    assert "model.layers.0.mlp.experts.0" in page.text
    assert len(text) < 1_000_000


def test_record_without_figures_or_verdict_still_renders() -> None:
    bare = replace(synthetic_results(), figures={}, measurements=[], missing=[], tool={})
    assert "has not been judged" in Page(render_html(bare)).text
    assert "Inconclusive" in render_markdown(bare)
    assert ET.fromstring(render_junit(bare)).findall(".//skipped")


def test_markdown_fits_a_comment_and_cuts_with_a_notice(big: Results, healthy: Results) -> None:
    for limit in (3_000, 20_000, COMMENT_LIMIT):
        text = render_markdown(big, limit=limit)
        assert len(text) <= limit
        assert "## Fail" in text
        assert text.count("<details>") == text.count("</details>")
    assert NOTICE in render_markdown(big, limit=3_000)
    full = render_markdown(healthy)
    assert NOTICE not in full
    assert full.index("## Pass") < full.index("KL mean") < full.index("All checks")


def test_markdown_escapes(hostile: Results) -> None:
    text = render_markdown(hostile)
    assert "<script" not in text
    assert "<img" not in text
    assert "@all" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    by_table = [re.sub(r"\\.", "", line).count("|") for line in rows if "domain" in line or "KL mean" in line]
    assert by_table  # an unescaped pipe would add a column to one row of a table
    assert escape("a|b`c\n<d>") == "a\\|b\\`c &lt;d&gt;"


def test_every_table_row_has_as_many_cells_as_its_head(hostile: Results, big: Results) -> None:
    for results in (hostile, big):
        width = 0
        for line in render_markdown(results).splitlines():
            if not line.startswith("| "):
                width = width if line.startswith("|") else 0
                continue
            cells = re.sub(r"\\.", "", line).count("|")
            width = width or cells
            assert cells == width, line


def test_junit_counts_and_never_passes_what_is_open(big: Results, hostile: Results) -> None:
    root = ET.fromstring(render_junit(big))
    assert big.verdict is not None
    cases = root.findall(".//testcase")
    assert len(cases) == len(big.verdict.rows)
    failed = [case for case in cases if case.find("failure") is not None]
    assert len(failed) == sum(row.status == "fail" for row in big.verdict.rows) > 48
    suites = root.findall("testsuite")
    assert sum(int(suite.get("failures", "0")) for suite in suites) == len(failed)
    message = failed[0].find("failure")
    assert message is not None
    assert "is beyond the bound" in str(message.get("message"))
    names = {prop.get("name") for prop in cases[1].iter("property")}
    assert {"rule", "value", "n", "ci_low", "ci_high", "noise_floor"} <= names
    ET.fromstring(render_junit(hostile))


def test_inconclusive_is_skipped() -> None:
    results = synthetic_results()
    results.measurements = [
        replace(m, ci_low=0.0, ci_high=0.5) if m.name == "logits.kl_mean" else m for m in results.measurements
    ]
    root = ET.fromstring(render_junit(judged(results)))
    assert results.verdict is not None
    assert results.verdict.status == "inconclusive"
    said = [str(one.get("message")) for one in root.findall(".//skipped")]
    assert sum(one.startswith("INCONCLUSIVE") for one in said) == 5
    assert {one.partition(" fp8")[0] for one in said} == {"INCONCLUSIVE", "NOT APPLICABLE"}


def test_csv_holds_every_measurement_once(big: Results, hostile: Results) -> None:
    tables = csv_tables(big)
    assert {"logits.csv", "router.csv", "mtp.csv", "weights.csv", "hidden.csv", "missing.csv", "verdict.csv"} == set(
        tables
    )
    rows = [row for name, text in tables.items() if name not in ("missing.csv", "verdict.csv") for row in read(text)]
    assert len(rows) == len(big.measurements)
    values = {(row["measurement"], row["lane"], row["slice"]): row["value"] for row in rows}
    for m in big.measurements:
        assert float(values[m.name, m.lane, m.slice]) == m.value
    for name, text in csv_tables(hostile).items():
        assert re.fullmatch(r"[A-Za-z0-9_-]+\.csv", name)
        assert not [value for row in read(text) for value in row.values() if value[:1] in ("=", "@", "+")]


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_visible_shows_what_cannot_be_seen() -> None:
    assert [visible(text) for text in (" the", "\n", "", "  ", "a b ")] == ["␣the", "⏎", "(empty)", "␣␣", "a b␣"]


def test_folder_is_written_whole_and_replaced_only_if_ours(tmp_path: Path, plain: Results) -> None:
    folder = tmp_path / "report"
    write_report(plain, folder)
    expected = {"report.html", "report.md", "summary.md", "junit.xml", "results.json", "tables"}
    assert {path.name for path in folder.iterdir()} == expected
    assert Results.load(folder / "results.json") == plain
    (folder / "old-note").write_text("of the last run")
    write_report(plain, folder)
    assert {path.name for path in folder.iterdir()} == expected
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    theirs = tmp_path / "thesis"
    theirs.mkdir()
    (theirs / "results.json").write_text('{"my": "life"}')
    with pytest.raises(UserError, match="not a report of qconvert"):
        write_report(plain, theirs)
    assert (theirs / "results.json").read_text() == '{"my": "life"}'


def test_failed_writing_leaves_nothing(tmp_path: Path, plain: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "report"
    write_report(plain, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def full_disk(self: Results, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Results, "save", full_disk)
    for target in (folder, tmp_path / "other"):
        with pytest.raises(UserError, match="cannot write the report"):
            write_report(plain, target)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["report"]


def test_baseline_shows_what_changed_and_refuses_unlike_things(healthy: Results) -> None:
    same = against(healthy, healthy, "old.json")
    assert {change.kind for change in same.changes} == {"same"}
    assert not same.moved
    worse = [
        replace(m, value=0.01, ci_low=0.009, ci_high=0.011)
        if (m.name, m.lane, m.slice) == ("logits.kl_mean", "fp8", "all")
        else m
        for m in healthy.measurements
        if not (m.name == "weights.sqnr_db" and m.lane == "fp8")
    ]
    found = against(replace(healthy, measurements=worse), healthy, "old.json")
    assert [(one.kind, one.name) for one in found.worse] == [("gone", "weights.sqnr_db"), ("worse", "logits.kl_mean")]
    assert "Against the baseline" in render_html(healthy, found)
    assert "2 of" in render_markdown(healthy, found)
    other = replace(healthy, tool={**healthy.tool, "tokens": 7})
    with pytest.raises(UserError, match="other tokens"):
        against(healthy, other, "old.json")
    lanes = [
        replace(one, files={"model.safetensors": "0" * 64}) if one.role == "base" else one for one in healthy.lanes
    ]
    with pytest.raises(UserError, match="another base model"):
        against(healthy, replace(healthy, lanes=lanes), "old.json")

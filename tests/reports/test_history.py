"""Baselines that gate, and histories: unlike things stand apart, every failure says how to accept the new figures."""

from __future__ import annotations

import shlex
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qconvert.cli import commands
from qconvert.errors import UserError
from qconvert_evals.results import Results
from qconvert_reports.baseline import Against, accept_command, against, gated
from qconvert_reports.budget import default_budget
from qconvert_reports.drift import settle
from qconvert_reports.history import read_history, text_lines
from qconvert_reports.history_markdown import render_history
from qconvert_reports.html import render_html
from qconvert_reports.junit import render_junit
from qconvert_reports.likeness import key, unlike
from qconvert_reports.markdown import COMMENT_LIMIT, render_markdown
from tests.reports.synthetic import synthetic_results
from tests.reports.test_commands import Run, contents


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Run:
    """`qconvert report`, installed or not."""
    ours = {"report": "qconvert_reports.cli.report:report"}
    monkeypatch.setattr(commands, "references", lambda: {**commands.CORE, **ours})
    return lambda *words: CliRunner().invoke(commands.main, ["report", *map(str, words)], catch_exceptions=False)


def record(created: str = "2026-01-02T03:04:05Z", kl: float = 0.003, **tool: Any) -> Results:
    """A judged record with little to plot and one number that can be set."""
    results = synthetic_results(layers=1)
    rows = [
        replace(m, value=kl, ci_low=0.9 * kl, ci_high=1.1 * kl)
        if (m.name, m.lane, m.slice) == ("logits.kl_mean", "fp8", "all")
        else m
        for m in results.measurements
    ]
    figures = {name: results.figures[name] for name in ("weights_worst", "model")}
    made = replace(results, created=created, measurements=rows, figures=figures, tool={**results.tool, **tool})
    settle(made, default_budget())
    return made


@pytest.fixture(scope="module")
def worse() -> Against:
    return against(record(kl=0.006), record(), "old runs/base.json", Path("new/results.json"))


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"tokens": 7}, "tokens"),
        ({"seq_len": 64}, "tokens"),
        ({"draft_tokens": 1}, "settings"),
        ({"live": {}}, "settings"),
    ],
)
def test_unlike_runs_are_refused_until_allowed_and_then_said(change: dict[str, Any], kind: str) -> None:
    now, before = record(), record(**change)
    with pytest.raises(UserError, match=f"--allow-other {kind}"):
        against(now, before, "old.json")
    found = against(now, before, "old.json", allowed=(kind,))
    assert [one.kind for one in found.unlike] == [kind]
    said = str(found.unlike[0]).replace("_", "\\_")
    assert said in render_markdown(now, found)
    if change == {"tokens": 7}:
        assert "Not alike, as allowed" in render_html(now, found)


def test_another_base_or_other_activations_are_unlike() -> None:
    now = record()
    lanes = [replace(one, files={"model.safetensors": "0" * 64}) if one.role == "base" else one for one in now.lanes]
    assert {one.kind for one in unlike(now, replace(now, lanes=lanes))} == {"base"}
    lanes = [
        replace(one, numerics={**one.numerics, "activations": "none"}) if one.name == "fp8" else one
        for one in now.lanes
    ]
    assert [(one.kind, one.what) for one in unlike(now, replace(now, lanes=lanes))] == [
        ("settings", "numerics of lane fp8")
    ]
    other_versions = [replace(one, versions={"torch": "9"}) for one in now.lanes]
    assert not unlike(now, replace(now, lanes=other_versions))


def test_benchmarks_run_in_another_way_are_unlike() -> None:
    """Where both ran some; more tasks are new numbers, and no other way of asking."""

    def asked(**settings: Any) -> Results:
        return replace(record(), figures={"tasks": {"settings": {"limit": 9, **settings}, "lm_eval": "0.4.13"}})

    assert [(one.kind, one.what) for one in unlike(asked(limit=5), asked())] == [("settings", "benchmarks, limit")]
    assert not unlike(asked(names=["a"]), asked(names=["b"])) and not unlike(asked(), record())
    assert key(asked(limit=5)) != key(asked()) == key(asked(names=["b"]))


def test_a_baseline_failure_says_how_to_accept_it(worse: Against) -> None:
    now = record(kl=0.006)
    assert [(one.kind, one.name) for one in worse.worse] == [("worse", "logits.kl_mean")]
    assert worse.accept == "cp new/results.json 'old runs/base.json'"
    assert worse.accept in render_markdown(now, worse)
    assert "cp new/results.json &#39;old runs/base.json&#39;" in render_html(now, worse)
    suites = {suite.get("name"): suite for suite in ET.fromstring(render_junit(now, worse))}
    (skipped,) = suites["baseline"].iter("skipped")  # informative: seen, and no pass
    assert worse.accept in str(skipped.get("message"))
    assert str(skipped.get("message")).startswith("CHANGED (WORSE) fp8 logits.kl_mean (all)")
    assert now.verdict is not None
    assert now.verdict.status == "pass"
    now.verdict = gated(now.verdict, worse)
    assert now.verdict.status == "fail"
    assert [row.rule for row in now.verdict.rows if row.status == "fail"] == ["baseline"]
    (failure,) = ET.fromstring(render_junit(now, worse)).iter("failure")
    assert worse.accept in str(failure.get("message"))
    assert gated(now.verdict, worse) == now.verdict


def test_nothing_worse_gates_nothing() -> None:
    now = record()
    assert now.verdict is not None
    better = against(now, record(kl=0.006), "old.json")
    assert gated(now.verdict, better) == now.verdict
    assert "accept the new figures" not in render_markdown(now, better)


def test_the_accepting_command_works_as_typed(tmp_path: Path) -> None:
    new, old = tmp_path / "new run.json", tmp_path / "old run.json"
    new.write_text("new")
    old.write_text("old")
    subprocess.run(accept_command(record(), old, new), shell=True, check=True)
    assert old.read_text() == "new"
    unsaved = replace(record(), tool={"command": f"cat {shlex.quote(str(old))} #"})  # the command may read the baseline
    typed = accept_command(unsaved, old, None).replace("# --json", "")
    subprocess.run(typed, shell=True, check=True)
    assert old.read_text() == "new"


def test_the_command_line_gates_and_allows(command: Run, tmp_path: Path) -> None:
    now, before, other = tmp_path / "now.json", tmp_path / "before.json", tmp_path / "other.json"
    record(kl=0.006).save(now)
    record().save(before)
    record(tokens=7).save(other)
    told = command(now, "--baseline", before)
    assert told.exit_code == 0
    assert "WORSE fp8 logits.kl_mean (all): 0.003 -> 0.006" in told.stdout
    assert f"accept the new figures: cp {now} {before}" in told.stdout
    failed = command(now, "--baseline", before, "--gate-baseline", "--junit", tmp_path / "gate.xml")
    assert failed.exit_code == 1
    assert f"cp {now} {before}" in (tmp_path / "gate.xml").read_text()
    assert command(now, "--baseline", other).exit_code == 2
    allowed = command(now, "--baseline", other, "--allow-other", "tokens")
    assert allowed.exit_code == 0
    assert "not alike, as allowed: tool.tokens: 7 before, 20480 now" in allowed.stdout
    assert command(now, "--gate-baseline").exit_code == 2


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Four runs, the second on other tokens; the third stands there twice."""
    folder = tmp_path / "runs"
    for name, made in {
        "b": record("2026-01-01T00:00:00Z", 0.003),
        "a": record("2026-01-02T00:00:00Z", 0.009, tokens=7),
        "d": record("2026-01-03T00:00:00Z", 0.004),
        "c": record("2026-01-03T00:00:00Z", 0.004),
        "e": record("2026-01-04T00:00:00Z", 0.005),
    }.items():
        (folder / name).mkdir(parents=True)
        made.save(folder / name / "results.json")
    return folder


def test_history_is_in_order_and_keeps_unlike_runs_apart(runs: Path) -> None:
    history = read_history(runs)
    assert [run.path[0] for run in history.runs] == ["b", "a", "c", "e"]
    assert [run.group for run in history.runs] == [0, 1, 0, 0]
    assert [bool(run.why) for run in history.runs] == [False, True, False, False]
    first = history.lines[0]
    assert (first.name, first.slice) == ("logits.kl_mean", "all")
    assert [m and m.value for m in first.lanes["fp8"]] == [0.003, 0.009, 0.004, 0.005]
    assert not [line for line in history.lines if "layer=" in line.slice or "domain=" in line.slice]
    text = render_history(history)
    assert "| KL divergence from BF16, mean | fp8 | 0.003 | 0.009 | 0.004 | 0.005 |" in text
    assert "run 2\\*" in text
    assert any("other tokens (tool.tokens)" in line for line in text_lines(history))


def test_lines_join_only_what_is_alike(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    from qconvert_reports.history_page import plot

    joined = []
    real = Axes.plot

    def spy(self: Axes, places: Any, values: Any, style: str, **more: Any) -> Any:
        joined.append((list(places), style))
        return real(self, places, values, style, **more)

    monkeypatch.setattr(Axes, "plot", spy)
    history = read_history(runs)
    plot(history, history.lines[0], {"fp8": "#000000"})
    assert ([0, 2, 3], "-") in joined
    assert [places for places, _ in joined if 1 in places] == [[1]]


def test_history_from_the_command_line(command: Run, runs: Path, tmp_path: Path) -> None:
    markdown = tmp_path / "h.md"
    result = command("--history", runs, "--markdown", markdown)
    assert result.exit_code == 0, result.output
    assert "0.003 0.009* 0.004 0.005" in result.stdout
    assert len(markdown.read_text()) < COMMENT_LIMIT
    before = contents(tmp_path)
    for words in (["--history", runs, "--baseline", markdown], [], ["--history", tmp_path / "none"]):
        assert command(*words).exit_code == 2
    (tmp_path / "empty").mkdir()
    assert "no results.json below" in command("--history", tmp_path / "empty").stderr
    assert contents(tmp_path) == before


def test_history_page_holds_a_picture_for_every_measurement(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qconvert_reports import history_page
    from qconvert_reports.plots import Plot

    drawn = []

    def blank(title: str, caption: str, draw: Any, lines: int) -> Plot:
        drawn.append(title)
        return Plot(title, caption, "<svg/>")

    monkeypatch.setattr(history_page, "draw_plot", blank)
    history = read_history(runs)
    text = history_page.render_page(history)
    assert len(drawn) == len(history.lines) == text.count("<img")
    assert "other tokens (tool.tokens)" in text
    assert "<script" not in text


def test_a_long_history_of_many_lanes_fits_a_comment(tmp_path: Path) -> None:
    for number in range(40):
        made = replace(record(f"2026-01-01T00:{number:02}:00Z"), figures={}, verdict=None)
        made.save(tmp_path / f"run-{number}.results.json")
    text = render_history(read_history(tmp_path))
    assert len(text) < COMMENT_LIMIT
    assert "40 runs" in text and "10 older ones" in text


def test_a_record_that_holds_a_measurement_twice_is_refused(runs: Path) -> None:
    """The second would win in silence, and a line would go through a number that the other half denies."""
    made = record("2026-01-05T00:00:00Z")
    twice = next(m for m in made.measurements if (m.name, m.lane, m.slice) == ("logits.kl_mean", "fp8", "all"))
    replace(made, measurements=[*made.measurements, replace(twice, value=0.1)]).save(runs / "f.results.json")
    with pytest.raises(
        UserError, match=r"a measurement twice(.|\n)*f\.results\.json\n(.|\n)*logits\.kl_mean all nats fp8"
    ):
        read_history(runs)


def test_another_unit_is_another_line(runs: Path) -> None:
    made = record("2026-01-05T00:00:00Z", 4.3)
    rows = [replace(m, unit="millinats") if m.name == "logits.kl_mean" else m for m in made.measurements]
    replace(made, measurements=rows).save(runs / "f.results.json")
    found = [line for line in read_history(runs).lines if (line.name, line.slice) == ("logits.kl_mean", "all")]
    values = {line.unit: [m and m.value for m in line.lanes["fp8"]] for line in found}
    assert values == {"nats": [0.003, 0.009, 0.004, 0.005, None], "millinats": [None] * 4 + [4.3]}


def test_a_history_of_empty_records(tmp_path: Path) -> None:
    replace(record(), measurements=[], verdict=None, figures={}).save(tmp_path / "results.json")
    history = read_history(tmp_path)
    assert len(history.runs) == 1 and not history.lines
    assert "1 runs" in render_history(history)


def test_a_history_without_pandas_names_the_extra(command: Run, runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "qconvert_reports.history")
    monkeypatch.setitem(sys.modules, "pandas", None)
    result = command("--history", runs)
    assert result.exit_code == 2
    assert "needs the package `pandas`" in result.stderr and "qconvert[evals]" in result.stderr


NAME = "weights.relative_error"


def with_error(results: Results, factor: float, **more: Any) -> Results:
    """The same record with another weight error of the candidate, without width in its interval."""
    rows = [
        replace(m, value=m.value * factor, ci_low=m.value * factor, ci_high=m.value * factor, **more)
        if m.name == NAME and m.lane == "fp8" and m.value is not None
        else m
        for m in results.measurements
    ]
    return replace(results, measurements=rows)


@pytest.mark.parametrize(("factor", "kind"), [(1.0, "same"), (1 + 4e-15, "worse"), (1 - 4e-15, "better")])
def test_an_exact_number_counts_where_it_differs_at_all(factor: float, kind: str) -> None:
    found = against(with_error(record(), factor), record(), "old.json")
    assert [one.kind for one in found.changes if one.name == NAME] == [kind]
    assert len(found.moved) == (kind != "same")


@pytest.mark.parametrize("factor", [1.0, 1 + 1e-9, 2.0])
def test_no_width_by_chance_is_not_exact(factor: float) -> None:
    """Whoever takes the width for a proof calls a sampled number "worse" here."""
    before, now = (with_error(record(), one, exact=False) for one in (1.0, factor))
    found = against(now, before, "old.json")
    assert [one.kind for one in found.changes if one.name == NAME] == ["same" if factor == 1 else "open"]
    assert not found.moved and not found.worse
    assert ("1 more differ" in found.counted) == (factor != 1)


def test_exact_and_sampled_cannot_be_told_apart() -> None:
    found = against(with_error(record(), 2.0), with_error(record(), 1.0, exact=False), "old.json")
    assert [one.kind for one in found.changes if one.name == NAME] == ["open"]

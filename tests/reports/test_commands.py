"""compare, report and demo as they are typed: exit codes, messages, what is left on the disk."""

from __future__ import annotations

import builtins
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from qconvert.cli import commands
from qconvert_evals.results import Results
from qconvert_evals.speculation import LiveSettings
from qconvert_reports.budget import default_budget
from qconvert_reports.drift import settle
from tests.reports.synthetic import synthetic_results
from tests.tiny import write_tiny_checkpoint

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line with this room's commands, installed or not."""
    ours = {name: f"qconvert_reports.cli.{name}:{name}" for name in ("compare", "report", "demo")}
    monkeypatch.setattr(commands, "references", lambda: {**commands.CORE, **ours})
    return lambda *words: CliRunner().invoke(commands.main, [str(word) for word in words], catch_exceptions=False)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A results.json without a verdict, as compare's library function leaves it, with little to plot."""
    results = synthetic_results(layers=2)
    path = tmp_path / "results.json"
    replace(results, figures={"model": results.figures["model"]}).save(path)
    return path


def change(path: Path, name: str, factor: float, spread: float = 0.0) -> None:
    """Multiply one measurement of the fp8 lane and widen its interval."""
    results = Results.load(path)
    results.measurements = [
        replace(m, value=m.value * factor, ci_low=m.value * (factor - spread), ci_high=m.value * (factor + spread))
        if m.name == name and m.lane == "fp8" and m.value is not None
        else m
        for m in results.measurements
    ]
    results.save(path)


def test_exit_codes_follow_the_verdict(run: Run, saved: Path) -> None:
    healthy = run("report", saved)
    assert healthy.exit_code == 0
    assert "PASS fp8: within the budget in all" in healthy.stdout
    change(saved, "logits.ppl_ratio", 1.008, 0.01)
    open_ = run("report", saved)
    assert open_.exit_code == 3
    assert "INCONCLUSIVE fp8 logits.ppl_ratio (all): 1.01 [" in open_.stdout
    change(saved, "logits.kl_mean", 100)
    drifted = run("report", saved)
    assert drifted.exit_code == 1
    assert "FAIL fp8 logits.kl_mean (all): 0.3" in drifted.stdout


def test_files_are_written_and_not_overwritten_unasked(run: Run, saved: Path, tmp_path: Path) -> None:
    names = {"--html": "a.html", "--markdown": "a.md", "--junit": "a.xml"}
    words = [part for option, name in names.items() for part in (option, tmp_path / name)]
    assert run("report", saved, *words).exit_code == 0
    assert all((tmp_path / name).stat().st_size > 1000 for name in names.values())
    (tmp_path / "a.xml").write_text("mine")
    (tmp_path / "a.md").unlink()
    refused = run("report", saved, *words)
    assert refused.exit_code == 2
    assert "the file exists" in refused.stderr
    assert not (tmp_path / "a.md").exists()
    assert (tmp_path / "a.xml").read_text() == "mine"
    assert run("report", saved, *words, "--overwrite").exit_code == 0
    assert (tmp_path / "a.xml").read_text() != "mine"


def test_verdict_in_the_file_stands_until_another_budget_is_given(run: Run, saved: Path, tmp_path: Path) -> None:
    results = Results.load(saved)
    settle(results, default_budget())
    results.save(saved)
    change(saved, "logits.kl_mean", 100)
    assert run("report", saved).exit_code == 0
    strict = tmp_path / "strict.toml"
    strict.write_text(
        'version = 1\n[all]\nlanes = ["*"]\n[[all.rows]]\nmeasurement = "logits.kl_mean"\nmax = 0.001\nwhy = "strict"\n'
    )
    assert run("report", saved, "--budget", strict).exit_code == 1


def test_json_is_the_record_with_its_verdict(run: Run, saved: Path) -> None:
    printed = run("report", saved, "--json")
    results = Results.from_json(printed.stdout)
    assert results.verdict is not None
    assert results.verdict.status == "pass"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report", "{tmp}/none.json"], "cannot read the results file"),
        (["report", "{tmp}/junk.json"], "not a results file"),
        (["report", "{saved}", "--budget", "{tmp}/none.toml"], "cannot read the budget"),
        (["report", "{saved}", "--budget", "{tmp}/junk.json"], "not valid TOML"),
        (["report", "{saved}", "--baseline", "{tmp}/other.json"], "other tokens"),
        (["report", "{saved}", "--html", "{tmp}/no/such/a.html"], "cannot write the report"),
        (["compare", "--bf16", "{tmp}/none", "--fp8", "{tmp}/none"], "no such folder"),
        (["compare", "--bf16", "{tmp}/none"], "nothing to compare with"),
        (["compare", "--bf16", "a", "--candidate", "fp8"], "needs a name and a path"),
        (["compare", "--bf16", "a", "--fp8", "b", "--candidate", "fp8=c"], "same name"),
        (["compare", "--bf16", "a", "--fp8", "b", "--report", "{tmp}/thesis"], "not a report of qconvert"),
        (["compare", "--bf16", "a", "--fp8", "b", "--weight-only", "--activations", "fp8-group128"], "contradicts"),
        (["compare", "--bf16", "a", "--fp8", "b", "--budget", "{tmp}/none.toml"], "cannot read the budget"),
        (["demo", "--report", "{tmp}/thesis"], "not a report of qconvert"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(
    run: Run, saved: Path, tmp_path: Path, words: list[str], message: str
) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter-1").write_text("theirs")
    (tmp_path / "junk.json").write_text("{ not json")
    replace(Results.load(saved), tool={"tokens": 7}).save(tmp_path / "other.json")
    before = contents(tmp_path)
    result = run(*(word.format(tmp=tmp_path, saved=saved) for word in words))
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert contents(tmp_path) == before


def test_compare_judges_draws_and_prints_the_path_last(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import qconvert_evals.compare

    called: dict[str, Any] = {}

    def measured(base: Path, candidates: dict[str, Path], **settings: Any) -> Results:
        called.update(settings, base=base, candidates=candidates)
        return synthetic_results(layers=2, lanes=("fp8", "int4"))

    monkeypatch.setattr(qconvert_evals.compare, "compare", measured)
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/qconvert", "compare", "--data", "my text.txt"])
    text = tmp_path / "text.txt"
    text.write_text("Some words to measure on.\n\nAnd some more of them.")
    folder = tmp_path / "report"
    words = ["--bf16", tmp_path, "--fp8", tmp_path, "--int4", tmp_path, "--data", text, "--tokens", 99]
    result = run(
        "compare",
        *words,
        "--seq-len",
        33,
        "--draft-tokens",
        2,
        "--live-prompts",
        5,
        "--weight-only",
        "--report",
        folder,
    )
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == str(folder / "report.html")
    assert "PASS fp8, int4" in result.stdout
    assert list(called["candidates"]) == ["fp8", "int4"]
    assert called["live"] == LiveSettings(prompts=5)
    assert (called["tokens"], called["seq_len"], called["draft_tokens"], called["activations"]) == (99, 33, 2, "none")
    assert Results.load(folder / "results.json").tool["command"] == "qconvert compare --data 'my text.txt'"


def test_another_baseline_does_not_cost_the_numbers(
    run: Run, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import qconvert_evals.compare

    monkeypatch.setattr(qconvert_evals.compare, "compare", lambda *_, **__: Results.load(saved))
    other = tmp_path / "other.json"
    replace(Results.load(saved), tool={"tokens": 7}).save(other)
    text = tmp_path / "text.txt"
    text.write_text("Some words to measure on.")
    words = [
        "--bf16",
        tmp_path,
        "--fp8",
        tmp_path,
        "--data",
        text,
        "--baseline",
        other,
        "--report",
        tmp_path / "report",
    ]
    result = run("compare", *words)
    assert result.exit_code == 2
    assert "other tokens" in result.stderr
    assert (tmp_path / "report" / "report.html").is_file()


@pytest.mark.parametrize("fault", [False, True])
def test_demo_quantizes_verifies_and_reports(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: bool
) -> None:
    """The real conversion and verification of a tiny model; the comparison, which takes a while, has its own tests."""
    import qconvert.verification
    import qconvert_evals.compare

    source = write_tiny_checkpoint(tmp_path / "small", shards=1)
    stand_in = types.SimpleNamespace(small_model_path=lambda: source)
    monkeypatch.setitem(sys.modules, "qconvert_evals.small_model_files", stand_in)
    monkeypatch.setattr(qconvert_evals.compare, "compare", lambda *_, **__: synthetic_results(layers=2))
    if fault:
        real = qconvert.verification.verify

        def verify_damaged(target: Path, against: Path) -> Any:
            (shard,) = target.glob("*.safetensors")
            data = bytearray(shard.read_bytes())
            data[-1] ^= 1
            shard.write_bytes(data)
            return real(target, against)

        monkeypatch.setattr(qconvert.verification, "verify", verify_damaged)
    result = run("demo", "--report", tmp_path / "demo-report", "--work", tmp_path / "work")
    assert result.exit_code == int(fault), result.output
    assert (tmp_path / "demo-report").exists() is not fault
    if fault:
        assert "FAIL" in result.stdout
    else:
        assert result.stdout.splitlines()[-1] == str(tmp_path / "demo-report" / "report.html")


def contents(folder: Path) -> dict[Path, bytes]:
    """Every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_missing_extra_is_named(run: Run, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_jinja2(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] == "jinja2":
            raise ModuleNotFoundError("No module named 'jinja2'", name="jinja2")
        return real(name, *rest, **more)

    for module in ("html", "page"):  # what imports it, and what imports that
        monkeypatch.delitem(sys.modules, f"qconvert_reports.{module}", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_jinja2)
    result = run("report", saved, "--html", tmp_path / "a.html")
    assert result.exit_code == 2
    assert "`jinja2`" in result.stderr
    assert "pip install 'qconvert[evals]'" in result.stderr


def test_looking_up_the_commands_is_light() -> None:
    modules = ", ".join(f"qconvert_reports.cli.{name}" for name in ("compare", "report", "demo"))
    heavy = "{'torch', 'numpy', 'jinja2', 'matplotlib', 'rich'} & set(sys.modules)"
    code = f"import sys; sys.path[:0] = {sys.path!r}; import {modules}; sys.exit(str({heavy}) if {heavy} else 0)"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_bug_in_drawing_keeps_the_numbers(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qconvert_reports import folder
    from qconvert_reports.cli.finish import Judging, finish

    def bug(*_: object) -> str:
        raise RuntimeError("bug")

    monkeypatch.setattr(folder, "render_html", bug)
    results = Results.load(saved)
    with pytest.raises(RuntimeError, match="bug"):
        finish(None, results, Judging(None, None, tmp_path / "report"), as_json=False)  # type: ignore[arg-type]
    assert Results.load(tmp_path / "report.results.json").measurements == results.measurements
    assert not (tmp_path / "report").exists()

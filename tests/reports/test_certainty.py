"""How sure a report says it is: the gate's own error rates, a provisional budget, text that fell short."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from qconvert.cli import main
from qconvert.errors import UserError
from qconvert_evals.results import Results
from qconvert_reports import certainty as module
from qconvert_reports.budget import default_budget
from qconvert_reports.certainty import certainty
from qconvert_reports.drift import settle
from qconvert_reports.html import render_html
from qconvert_reports.markdown import render_markdown, render_summary
from qconvert_reports.recorded import record_of, recorded_pairs
from qconvert_reports.terminal import verdict_lines
from tests.reports.synthetic import synthetic_results
from tests.reports.test_drift import budget

ROW = {
    "rule": "fp8: logits.kl_mean (all) max", "measurement": "logits.kl_mean", "slice": "all",
    "pass": 0.9975, "fail": 0.0, "inconclusive": 0.0025, "coverage": 0.94,
}  # fmt: skip
FAULT = {
    "name": "router", "what": "noise on the router's logits", "limit": 0.0612, "fail": 0.83, "draws": 1000,
    "row": "router.topk_overlap (feed=local)", "row_fails": 0.83, "value": 0.96, "without": 0.99,
}  # fmt: skip


def calibrated(budget_digest: str) -> dict[str, Any]:
    lanes = {"fp8": {"pass": 0.9975, "fail": 0.0, "inconclusive": 0.0025, "rows": [ROW]}}
    return {
        "model": "the shipped small model", "parameters": 11_677_336, "tokens": 16384, "documents": 64, "runs": 3000,
        "seed": 1, "budget": budget_digest, "schemes": {"fp8": "fp8-block128"}, "lanes": lanes, "faults": [FAULT],
        "fault_tokens": 8192,
    }  # fmt: skip


def judged(results: Results | None = None) -> Results:
    results = results or synthetic_results()
    settle(results, default_budget())
    return results


def test_the_gates_own_errors_stand_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "calibration", lambda: calibrated(default_budget().digest))
    results = judged()
    text = " ".join(certainty(results).sentences)
    assert "11.7 million parameters, 16,384 tokens of 64 documents" in text and "3,000 times" in text
    assert "fp8-block128: PASS 99.75%, FAIL 0 of 3,000, INCONCLUSIVE 0.25%" in text
    assert "router 0.061" in text and "another version" not in text
    for page in (render_html(results), render_summary(results)):
        for part in ("How sure is this?", "FAIL 0 of 3,000", "83.0%", "99.75%", "94.0%"):
            assert part in page, part
    assert "FAIL 0 of 3,000" in render_markdown(results)


def test_a_calibration_of_other_bounds_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "calibration", lambda: calibrated("another"))
    assert "another version of the budget" in " ".join(certainty(judged()).sentences)


def test_a_budget_of_the_users_own_is_not_calibrated_nor_provisional() -> None:
    results = synthetic_results()
    settle(results, budget("max = 0.015"))
    found = certainty(results)
    assert not found.provisional and not found.tables
    assert "errs" not in " ".join(found.sentences)


def test_the_digest_is_that_of_the_bounds() -> None:
    ours = budget("max = 0.015")
    assert ours.digest == budget("max = 0.015").digest != budget("max = 0.02").digest
    (section,) = ours.sections
    reworded = replace(section, rules=tuple(replace(rule, why="in other words") for rule in section.rules))
    assert replace(ours, sections=(reworded,)).digest == ours.digest


def test_provisional_until_a_large_pair_is_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    results = judged()
    for text in ("not yet from a recorded pair of this size", "(provisional)"):
        assert text in render_html(results)
    assert "not yet from a recorded pair" in render_markdown(results)
    assert any("provisional" in str(line) for line in verdict_lines(results))
    small, large = ({**record_of(results), "parameters": size} for size in (9e9, 8e10))
    for pairs, provisional in (((small,), True), ((small, large), False)):
        monkeypatch.setattr(module, "recorded_pairs", lambda pairs=pairs: pairs)
        assert certainty(results).provisional == provisional
    assert "provisional" not in render_html(results)
    assert not any("provisional" in str(line) for line in verdict_lines(results))


def test_what_ships_is_no_large_pair() -> None:
    for one in recorded_pairs():
        assert one["lanes"] and one["tokens"] and "/" not in one["model"]


def test_record_writes_the_few_figures(tmp_path: Path) -> None:
    judged().save(tmp_path / "results.json")
    arguments = ["report", str(tmp_path / "results.json"), "--record", str(tmp_path / "pair.json")]
    found = CliRunner().invoke(main, arguments)
    assert (tmp_path / "pair.json").is_file(), found.output
    pair = json.loads((tmp_path / "pair.json").read_text())
    assert pair["parameters"] == 79_674_391_296 and pair["model"] == "Qwen3-Next-tiny-BF16"
    assert pair["budget"] == default_budget().digest
    assert pair["lanes"]["fp8"]["scheme"] == "fp8-block128"
    assert pair["lanes"]["fp8"]["measurements"]["logits.kl_mean (all)"] == pytest.approx([0.003, 0.0027, 0.0033])
    assert CliRunner().invoke(main, arguments).exit_code == 2  # never over an existing file


def test_results_without_a_model_go_on_no_record() -> None:
    results = judged()
    with pytest.raises(UserError, match="cannot go on record"):
        record_of(replace(results, figures={}))


def short(asked: int) -> Results:
    results = synthetic_results()
    tool = {**results.tool, "tokens": 98_150, "tokens_asked": asked, "longest_sequence": 512}
    return judged(replace(results, tool=tool))


def test_a_shortfall_of_text_is_said() -> None:
    words = "98,150 tokens were measured of 200,000"
    results = short(200_000)
    for page in (render_html(results), render_markdown(results), "\n".join(map(str, verdict_lines(results)))):
        assert words in " ".join(page.split())
    assert "Less text" not in render_html(short(98_304))  # shares of domains are rounded down


def test_positions_that_were_measured_are_said() -> None:
    words = "Positions up to 511 were measured, of a context of 262,144 tokens"
    results = short(98_304)
    for page in (render_html(results), render_markdown(results), "\n".join(map(str, verdict_lines(results)))):
        assert words in " ".join(page.split())

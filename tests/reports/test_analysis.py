"""docs/analysis.md: its snippets run as they stand, one after the other, on a report of the usual names."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas
import pytest

from qconvert_evals.results import Results
from qconvert_reports.budget import default_budget
from qconvert_reports.drift import settle
from tests.reports.synthetic import synthetic_results

TEXT = Path(__file__).parents[2] / "docs" / "analysis.md"


@pytest.fixture(scope="module")
def record() -> Results:
    made = synthetic_results(layers=12, lanes=("fp8", "int4"))
    settle(made, default_budget())
    assert made.verdict is not None
    rows = [replace(row, margin=float(-number)) for number, row in enumerate(made.verdict.rows)]
    return replace(made, verdict=replace(made.verdict, rows=rows))


def test_the_snippets_run(record: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    for place in ("demo-report", "runs/a", "runs/b"):
        Path(place).mkdir(parents=True)
    record.save("demo-report/results.json")
    record.save("runs/a/results.json")
    replace(record, created="2026-02-01T00:00:00Z").save("runs/b/results.json")
    snippets = re.findall(r"^```python\n(.*?)^```", TEXT.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(snippets) == TEXT.read_text(encoding="utf-8").count("```") // 2 == 4
    names: dict[str, Any] = {}
    for snippet in snippets:
        exec(compile(snippet, str(TEXT), "exec"), names)

    table, closest, kl = names["table"], names["closest"], names["kl"]
    assert list(table.index) == list(range(12)) and list(table.columns) == ["bf16-noise", "fp8", "int4"]
    for lane in table.columns:
        for layer in table.index:
            found = record.find("router.kl", lane, f"layer={layer},feed=local")
            assert found is not None and found.value == table.loc[layer, lane]
    assert Path("router-by-layer.svg").stat().st_size > 1000
    assert len(closest) == 10 and closest["margin"].is_monotonic_increasing and closest["noise_floor"].notna().any()
    assert kl.shape == (2, 3) and pandas.notna(kl["fp8"]).all()

"""The gate is right as often as it says: benchmarks/gate_calibration.py, small. Bounds: binomial, at one in 10,000."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from scipy.stats import binom

ROOT = Path(__file__).parents[2]
REPEATS, LUCK = 300, 1e-4


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gate_calibration", ROOT / "benchmarks/gate_calibration.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def found(script: ModuleType) -> dict[str, Any]:
    return script.calibrate(REPEATS, places=(0.0, 1.0), seed=5)


def at_most(share: float, bound: float, repeats: int) -> bool:
    """Whether a count as high as this is still likely where the true share is the bound."""
    return bool(binom.sf(round(share * repeats) - 1, repeats, bound) > LUCK)


def at_least(share: float, bound: float, repeats: int) -> bool:
    """Whether a count as low as this is still likely where the true share is the bound."""
    return bool(binom.cdf(round(share * repeats), repeats, bound) > LUCK)


def check(found: dict[str, Any]) -> None:
    """What the gate promises; the record says how many repeats it has."""
    n = found["repeats"]
    for row in found["rows"].values():
        at = {one["x"]: one for one in row["curve"]}
        assert at_most(at[0.0]["fail"], found["alpha"], n)
        assert at_least(1 - at[1.0]["pass"], found["power"], n)
        assert at_most(row["no_true_change"]["fail"], found["alpha"], n)
        if "bound_of_zero" in row:
            assert at_most(row["bound_of_zero"]["no_true_change"]["fail"], found["alpha"], n)
            assert at_least(1 - row["bound_of_zero"]["drop_of_mde"]["pass"], found["power"], n)
    assert at_most(found["all_rows_no_true_change"]["fail"], found["alpha"], n)


@pytest.mark.slow
def test_false_alarms_and_power(found: dict[str, Any]) -> None:
    check(found)
    for row in found["rows"].values():  # FAIL alone has the power too, but for what skewed data cost it
        assert at_least({one["x"]: one for one in row["curve"]}[1.0]["fail"], found["power"] - 0.05, REPEATS)


def test_the_committed_figures_keep_the_promise() -> None:
    path = ROOT / "benchmarks/results/2026-11-21-gate-calibration.json"
    check(json.loads(path.read_text(encoding="utf-8")))


def test_tokens_taken_for_independent_are_caught(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault this guards against: an interval that ignores documents fails far more often than it says."""
    real = script.statistics.mean

    def by_token(values: Any, documents: Any) -> Any:
        return real(values, script.np.arange(len(documents)))

    source = script.np.random.default_rng(3)
    row = next(one for one in script.ROWS if one.name == "mean")
    monkeypatch.setattr(script.statistics, "mean", by_token)
    naive = script.shares(row, row.bound, REPEATS, source, row.budget())
    assert not at_most(naive["fail"], script.ALPHA, REPEATS)

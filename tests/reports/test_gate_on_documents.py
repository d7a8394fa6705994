"""The gate on drawn documents of a real comparison, small: an honest FP8 conversion passes, intervals hold the truth.

Binomial bounds at one in 10,000, so that a red test is a finding. The published run is `python -m benchmarks.gate`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks.gate.graded_faults import CAUGHT, FAULTS, limit, middle
from benchmarks.gate.judging import Gate, Outcomes
from qconvert.quantization import quantize
from qconvert_evals import statistics
from qconvert_evals.compare import compare
from qconvert_evals.results import Results
from qconvert_evals.small_model_files import small_model_path
from qconvert_evals.speculation import LiveSettings
from qconvert_evals.statistics import Estimate
from qconvert_reports.budget import Budget, default_budget
from qconvert_reports.certainty import calibration
from tests.reports.test_drift import budget as budget_of

ROOT = Path(__file__).parents[2]
TOKENS, RUNS, LUCK = 8192, 120, 1e-4
PASSES, HOLDS, HOLDS_TOGETHER = 0.99, 0.85, 0.91  # skewed rows of 8 documents a domain are the low ones

Kept = tuple[Results, list[object]]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    folder = tmp_path_factory.mktemp("gate") / "fp8"
    quantize(small_model_path(), folder, scheme="fp8-block128")
    states: list[object] = []
    results = compare(
        small_model_path(), {"fp8": folder}, tokens=TOKENS, live=LiveSettings(prompts=8, new_tokens=16), keep=states
    )
    return results, states


def drawn(kept: Kept, budget: Budget, runs: int = RUNS) -> Outcomes:
    return Gate(*kept, "fp8", budget).outcomes(runs, 7)


def at_least(share: float, bound: float, runs: int) -> bool:
    """Whether a count as low as this is still likely where the true share is the bound."""
    return bool(binom.cdf(round(share * runs), runs, bound) > LUCK)


def wrong(found: Outcomes) -> list[str]:
    """What the gate promises and these draws do not show."""
    lines = [f"{found.whole['fail']} honest draws failed"] if found.whole["fail"] else []
    if not at_least(found.share("pass"), PASSES, found.runs):
        lines.append(f"{found.share('pass'):.1%} of honest draws passed")
    rows = [row for row in found.row_shares() if row["coverage"] is not None]
    lines += [
        f"{row['measurement']} ({row['slice']}): {row['coverage']:.1%} of its intervals hold the truth"
        for row in rows
        if not at_least(float(str(row["coverage"])), HOLDS, found.runs)
    ]
    together = float(np.mean([float(str(row["coverage"])) for row in rows]))
    return lines + ([f"{together:.1%} of all intervals hold the truth"] if together < HOLDS_TOGETHER else [])


@pytest.mark.slow
def test_an_honest_conversion_passes_and_intervals_hold_the_truth(kept: Kept) -> None:
    found = drawn(kept, default_budget())  # each draw of every document once equals the record, or Gate raises
    assert not wrong(found)
    assert len(found.rows) > 30


@pytest.mark.slow
def test_intervals_that_are_too_narrow_are_caught(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault this guards against: half the width passes all that is honest, and holds the truth 2 times in 3."""
    gate = Gate(*kept, "fp8", default_budget())
    for name in ("mean", "ratio", "proportion"):
        monkeypatch.setattr(statistics, name, halved(getattr(statistics, name)))
    assert any("of all intervals" in line for line in wrong(gate.outcomes(RUNS // 2, 7)))


def halved(right: Callable[..., Estimate]) -> Callable[..., Estimate]:
    def narrow(*arguments: Any) -> Estimate:
        one = right(*arguments)
        if one.value is None or one.low is None or one.high is None:
            return one
        return replace(one, low=(one.value + one.low) / 2, high=(one.value + one.high) / 2)

    return narrow


@pytest.mark.slow
def test_an_unpaired_row_over_eight_prompts_is_caught(kept: Kept) -> None:
    """The fault this guards against: two averages over a handful of prompts, held together as if independent."""
    unpaired = budget_of("min_difference_from_base = -20.0", "mtp.acceptance_live", 'unit = "pp"\nslice = "position=1"')
    (section,), (row,) = unpaired.sections, unpaired.sections[0].rules
    both = replace(default_budget(), sections=(*default_budget().sections, replace(section, rules=(row,))))
    assert any("of honest draws passed" in line for line in wrong(drawn(kept, both, RUNS // 2)))


@pytest.mark.slow
def test_a_record_that_the_draws_do_not_give_again_is_refused(kept: Kept) -> None:
    results, states = kept
    other = [
        replace(one, value=one.value + 1e-6) if (one.name, one.lane) == ("logits.kl_mean", "fp8") and one.value else one
        for one in results.measurements
    ]
    with pytest.raises(AssertionError, match="where the record has"):
        Gate(replace(results, measurements=other), states, "fp8", default_budget())


def test_limits_are_bisected_between_strengths() -> None:
    shares = {0.1: 0.0, 0.4: 1.0, 0.8: 1.0}
    assert limit(shares) == 0.4 and middle(shares) == pytest.approx(0.2)
    shares[0.2] = 0.5
    assert limit(shares) == 0.4 and middle(shares) == pytest.approx(0.08**0.5)
    assert limit({0.1: 1.0, 0.2: 1.0}) == 0.1 and middle({0.1: 1.0, 0.2: 1.0}) == pytest.approx(0.005**0.5)
    assert limit({0.1: 0.0, 0.4: 0.1}) == 0.4


def test_the_shipped_figures_are_those_of_this_budget_and_keep_the_promise() -> None:
    found = calibration()
    assert found is not None
    assert found["budget"] == default_budget().digest, (
        "bounds changed: run `python -m benchmarks.gate` as CONTRIBUTING says"
    )
    assert found["runs"] >= 3000
    for lane in found["lanes"].values():
        assert lane["pass"] >= PASSES and lane["fail"] == 0
    assert {one["name"] for one in found["faults"]} == set(FAULTS) and len(FAULTS) >= 5
    assert all(one["fail"] >= CAUGHT for one in found["faults"])
    newest = sorted((ROOT / "benchmarks/results").glob("*-gate-calibration.json"))[-1]
    published = json.loads(newest.read_text(encoding="utf-8"))
    for name, lane in found["lanes"].items():
        assert {key: published["lanes"][name][key] for key in lane} == lane

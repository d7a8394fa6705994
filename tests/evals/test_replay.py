"""The loop beside its own text: paired at its anchors, with bounds that count prompts, through the shipped budget."""

from dataclasses import replace
from math import hypot

import numpy as np
import pytest

from qconvert_evals import statistics
from qconvert_evals.metrics import replay
from qconvert_evals.results import LaneIdentity, Measurement, Results
from qconvert_reports.budget import default_budget
from qconvert_reports.drift import judge

PROMPTS, ROUNDS = 24, 10


def outcomes(seed: int = 0) -> list[list[int]]:
    """Runs of accepted drafts by prompt and round; prompts are as unlike as those of four domains."""
    rng = np.random.default_rng(seed)
    rates = np.tile([0.95, 0.8, 0.55, 0.3], PROMPTS // 4)
    return [rng.binomial(1, rate, (ROUNDS, 3)).cumprod(1).sum(1).tolist() for rate in rates]


def state_of(kept: list[list[int]], forced: list[list[int]]) -> replay.ReplayState:
    state = replay.ReplayState("fp8", 3)
    for document, (live, run) in enumerate(zip(kept, forced, strict=True)):
        replay.update(state, document, [3] * len(live), live, run)
    return state


def row(state: replay.ReplayState, name: str = replay.GAP, at: str = "position=1") -> Measurement:
    (found,) = [one for one in replay.result(state).measurements if (one.name, one.slice) == (name, at)]
    return found


def one_differs(runs: list[list[int]], prompts: int = 1) -> list[list[int]]:
    """The first round of some prompts the other way round."""
    changed = [list(run) for run in runs]
    for run in changed[:prompts]:
        run[0] = 0 if run[0] else 3
    return changed


def test_gaps_by_hand() -> None:
    state = replay.ReplayState("fp8", 3)
    replay.update(state, 0, [3, 3, 1], [3, 0, 1], [3, 1, 3])  # the last made one draft, which the text too accepts
    replay.update(state, 1, [3, 3], [2, 2], [2, 2])
    assert row(state).value == pytest.approx(-1 / 5)
    assert row(state, at="position=2").value == 0
    assert row(state, at="position=2").n == row(state, at="position=3").n == 4
    assert row(state, replay.GAP_LENGTH, "all").value == pytest.approx(-1 / 5)
    assert row(state, replay.EXACT, "all").value == 0.5
    assert row(state, replay.EXACT, "all").n == 2


def test_where_nothing_differs_the_bounds_count_prompts() -> None:
    runs = outcomes()
    same = row(state_of(runs, runs))
    assert same.value == 0 and not same.exact
    assert same.ci_high == pytest.approx((1 - 0.05 ** (1 / PROMPTS)) / ROUNDS)  # 0.0117: not of 240 drafts
    assert same.ci_low == -same.ci_high
    few, longer = runs[:6], [run * 4 for run in runs[:6]]  # as many drafts from a quarter of the prompts
    assert row(state_of(few, few)).ci_high > 3 * same.ci_high
    assert row(state_of(longer, longer)).ci_high == pytest.approx((1 - 0.05 ** (1 / 6)) / (4 * ROUNDS))
    lonely = row(state_of(runs[:1], runs[:1]))
    assert (lonely.ci_low, lonely.ci_high) == (None, None)


def test_one_round_that_differs_does_not_narrow_them() -> None:
    runs = outcomes()
    same, one = row(state_of(runs, runs)), row(state_of(one_differs(runs), runs))
    assert abs(one.value or 0) == pytest.approx(1 / (PROMPTS * ROUNDS))
    assert one.ci_low is not None and one.ci_high is not None and same.ci_high is not None
    assert one.ci_high - one.ci_low >= 2 * same.ci_high * 0.999


def record(fp8: replay.ReplayState) -> Results:
    """The replay rows of BF16, where nothing differs, and of one FP8 lane."""
    runs = outcomes()
    base = replace(state_of(runs, runs), lane="bf16")
    lanes = [LaneIdentity(name, role, "", None, {}, {}, {}, {}) for name, role in
             (("bf16", "base"), ("fp8", "candidate"))]  # fmt: skip
    found = [*replay.result(base).measurements, *replay.result(fp8).measurements]
    return Results(lanes=lanes, measurements=found)


def verdict(fp8: replay.ReplayState) -> str:
    """Of the default budget's row."""
    (status,) = [one.status for one in judge(record(fp8), default_budget()).rows if one.measurement == replay.GAP]
    return status


def test_the_row_is_paired() -> None:
    """Two prompts in 24 differ at one anchor. Paired that is decided; as two averages of the same drafts it is not."""
    runs = outcomes()
    state = state_of(one_differs(runs, 2), runs)
    assert verdict(state) == "pass"
    documents, ones = np.repeat(np.arange(PROMPTS), ROUNDS), np.ones(PROMPTS * ROUNDS)
    live, forced = (
        statistics.proportion((np.asarray(one) >= 1).astype(float), ones, documents)
        for one in (state.kept, state.replayed)
    )
    assert live.value is not None and live.high is not None and forced.value is not None and forced.low is not None
    assert hypot(live.high - live.value, forced.value - forced.low) > 0.05  # what independent intervals would need


def test_a_loop_that_keeps_other_drafts_fails() -> None:
    runs = outcomes()
    broken = [[0 if number % 3 == 0 else run for number, run in enumerate(prompt)] for prompt in runs]
    assert verdict(state_of(broken, runs)) == "fail"
    generous = [[3 if number % 3 == 0 else run for number, run in enumerate(prompt)] for prompt in runs]
    assert verdict(state_of(generous, runs)) == "fail"


def test_nothing_decoded_is_missing() -> None:
    found = replay.result(replay.ReplayState("fp8", 2))
    assert all(one.value is None for one in found.measurements)
    assert {one.why for one in found.missing} == {replay.NO_ANCHOR}
    assert [(one.name, one.slice) for one in found.measurements] == [
        (replay.GAP, "position=1"), (replay.GAP, "position=2"), (replay.GAP_LENGTH, "all"), (replay.EXACT, "all")
    ]  # fmt: skip

"""The verdict: pass, fail and inconclusive at the edges, and nothing unmeasured ever passes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qconvert_evals.results import Measurement, Missing, Results, VerdictRow
from qconvert_reports.budget import Budget, default_budget, parse_budget
from qconvert_reports.drift import judge, settle
from tests.reports.synthetic import synthetic_results


def budget(bound: str, measurement: str = "logits.kl_mean", more: str = "") -> Budget:
    row = f'[[x.rows]]\nmeasurement = "{measurement}"\n{bound}\n{more}\nwhy = "test"'
    return parse_budget(f'version = 1\n[x]\nlanes = ["*"]\n{row}', "test")


def one(results: Results, rules: Budget) -> VerdictRow:
    verdict = judge(results, rules)
    assert len(verdict.rows) == 1
    assert verdict.status == verdict.rows[0].status or verdict.rows[0].status == "not applicable"
    return verdict.rows[0]


def changed(results: Results, name: str, lane: str, change: Callable[[Measurement], Measurement]) -> Results:
    """The record with one lane's rows of one name changed."""
    rows = [change(m) if (m.name, m.lane) == (name, lane) else m for m in results.measurements]
    assert rows != results.measurements
    return replace(results, measurements=rows)


def without(results: Results, prefix: str, lane: str, why: str | None) -> Results:
    """The record as compare writes it where a lane cannot be measured: no value, and an entry in `missing`."""
    gone = [m for m in results.measurements if m.name.startswith(prefix) and m.lane == lane]
    assert gone
    rows = [replace(m, value=None, ci_low=None, ci_high=None) if m in gone else m for m in results.measurements]
    said = [Missing(m.name, lane, m.slice, why) for m in gone] if why else []
    return replace(results, measurements=rows, missing=[*results.missing, *said])


# kl_mean of the synthetic fp8 lane is 0.003 [0.0027, 0.0033]
@pytest.mark.parametrize(
    ("bound", "status"),
    [
        ("max = 0.0034", "pass"),
        ("max = 0.0033", "pass"),
        ("max = 0.0031", "inconclusive"),
        ("max = 0.0029", "inconclusive"),
        ("max = 0.0026", "fail"),
        ("min = 0.0026", "pass"),
        ("min = 0.0029", "inconclusive"),
        ("min = 0.0034", "fail"),
    ],
)
def test_interval_against_bound(bound: str, status: str) -> None:
    assert one(synthetic_results(), budget(bound)).status == status


@given(st.floats(0, 1), st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)))
def test_max_and_min_mirror_each_other(limit: float, interval: tuple[float, float, float]) -> None:
    low, value, high = sorted(interval)
    statuses = []
    for sign, bound in ((1, f"max = {limit!r}"), (-1, f"min = {-limit!r}")):
        edges = sorted((sign * low, sign * high))
        row = Measurement("a.b", "fp8", "all", sign * value, "nats", 10, edges[0], edges[1], exact=low == high)
        results = replace(synthetic_results(layers=1), measurements=[row])
        statuses.append(one(results, budget(bound, "a.b")).status)
    assert statuses[1] == statuses[0]
    assert statuses[0] == ("pass" if high <= limit else "fail" if low > limit else "inconclusive")


def test_exact_numbers_have_no_middle() -> None:
    results = synthetic_results()
    assert one(results, budget("max = 0.0266", "weights.relative_error")).status == "pass"
    assert one(results, budget("max = 0.0264", "weights.relative_error")).status == "fail"


def test_no_width_by_chance_is_no_certainty() -> None:
    """Two documents that agree to the last digit: a sampled number without a spread, neither exact nor decided."""
    by_chance = changed(
        synthetic_results(), "logits.kl_mean", "fp8", lambda m: replace(m, ci_low=m.value, ci_high=m.value)
    )
    row = one(by_chance, budget("max = 0.02"))
    assert row.status == "inconclusive" and "none that differ" in row.reason
    counted = changed(by_chance, "logits.kl_mean", "fp8", lambda m: replace(m, exact=True))
    row = one(counted, budget("max = 0.02"))
    assert row.status == "pass" and row.decided == "counted in full, and within the bound"


def test_unknown_interval_can_fail_but_not_pass() -> None:
    lonely = changed(synthetic_results(), "logits.kl_mean", "fp8", lambda m: replace(m, ci_low=None, ci_high=None))
    assert one(lonely, budget("max = 0.002")).status == "fail"
    row = one(lonely, budget("max = 0.02"))
    assert row.status == "inconclusive"
    assert "too few documents" in row.reason


def test_too_few_samples_are_inconclusive() -> None:
    row = one(synthetic_results(), budget("max = 0.02", more="min_n = 30000"))
    assert row.status == "inconclusive"
    assert "20,480" in row.reason and row.needed_n == 30000


def test_difference_uses_the_paired_measurement_where_there_is_one() -> None:
    results = synthetic_results()
    rules = budget("min_difference_from_base = -0.5", "mtp.acceptance_greedy", 'unit = "pp"\nslice = "position=1"')
    unpaired = one(results, rules)
    assert unpaired.value == pytest.approx(-0.0004)
    assert unpaired.status == "inconclusive"
    assert unpaired.ci[0] == pytest.approx(-0.0004 - (2 * 0.008**2) ** 0.5)
    pair = Measurement("mtp.acceptance_greedy_difference", "fp8", "position=1", -0.001, "fraction", 9000, -0.003, 0.001)
    paired = one(replace(results, measurements=[*results.measurements, pair]), rules)
    assert (paired.status, paired.value) == ("pass", -0.001)
    assert "pp" in paired.reason


def test_noise_multiples() -> None:
    results = synthetic_results()  # noise floor of kl_mean: 0.00006
    assert one(results, budget("max_times_noise = 100")).status == "pass"
    assert one(results, budget("max_times_noise = 10")).status == "fail"
    no_floor = changed(results, "logits.kl_mean", "fp8", lambda m: replace(m, noise_floor=None))
    assert one(no_floor, budget("max_times_noise = 100")).status == "inconclusive"


def test_what_the_base_has_and_the_candidate_lacks_is_a_fail() -> None:
    why = "mtp.fc.weight is missing from the checkpoint"
    for reason in (why, None):
        verdict = judge(without(synthetic_results(), "mtp.", "fp8", reason), default_budget())
        rows = [row for row in verdict.rows if row.measurement.startswith("mtp.")]
        assert verdict.status == "fail"
        assert rows
        assert {row.status for row in rows} == {"fail"}
        assert all((reason or "absent") in row.reason or reason is None for row in rows)


def test_the_reason_of_a_wider_slice_is_found() -> None:
    results = without(synthetic_results(), "mtp.", "fp8", None)
    said = Missing("mtp.acceptance_greedy", "fp8", "position=1", "the head lost mtp.fc.weight")
    results = replace(results, missing=[*results.missing, said])
    rules = budget("min_difference_from_base = -1", "mtp.acceptance_greedy", 'slice = "position=1,domain=code"')
    row = one(results, rules)
    assert row.status == "fail"
    assert "the head lost mtp.fc.weight (measured for bf16 and bf16-noise)" in row.reason


def test_rows_that_are_gone_altogether_fail_too() -> None:
    results = synthetic_results()
    kept = [m for m in results.measurements if not (m.lane == "fp8" and m.name.startswith("mtp."))]
    assert judge(replace(results, measurements=kept), default_budget()).status == "fail"


def test_a_base_without_head_is_not_applicable_and_said_so() -> None:
    results = synthetic_results()
    for lane in ("bf16", "bf16-noise", "fp8"):
        results = without(results, "mtp.", lane, "the checkpoint has no MTP head")
    verdict = judge(results, default_budget())
    rows = [row for row in verdict.rows if row.measurement.startswith("mtp.")]
    assert verdict.status == "pass"
    assert {row.status for row in rows} == {"not applicable"}
    assert all("no MTP head" in row.reason for row in rows)


def test_a_measurement_nobody_has_is_inconclusive() -> None:
    assert one(synthetic_results(), budget("max = 1", "logits.kl_typo")).status == "inconclusive"


def test_wrong_unit_is_inconclusive() -> None:
    row = one(synthetic_results(), budget("max = 1", more='unit = "%"'))
    assert row.status == "inconclusive"
    assert "nats" in row.reason


def test_unjudged_lane_and_no_candidate_are_inconclusive() -> None:
    results = synthetic_results(lanes=("fp8", "int4"))
    rules = parse_budget(
        'version = 1\n[x]\nlanes = ["fp8"]\n[[x.rows]]\nmeasurement = "logits.kl_mean"\nmax = 1\nwhy = "test"', "test"
    )
    assert judge(results, rules).status == "inconclusive"
    bare = replace(results, lanes=[one_ for one_ in results.lanes if one_.role != "candidate"])
    assert judge(bare, rules).status == "inconclusive"


def test_one_bad_layer_fails_its_own_row() -> None:
    results = synthetic_results(layers=48)
    rows = [
        replace(m, value=0.5, ci_low=0.49, ci_high=0.51)
        if (m.name, m.lane, m.slice) == ("router.topk_overlap", "fp8", "layer=31,feed=local")
        else m
        for m in results.measurements
    ]
    verdict = judge(replace(results, measurements=rows), default_budget())
    assert [row.slice for row in verdict.rows if row.status == "fail"] == ["layer=31,feed=local"]


def test_a_failing_weight_is_named() -> None:
    results = synthetic_results()
    name = "model.layers.2.mlp.experts.3.up_proj.weight"
    results.figures |= {
        "weights_worst_blocks": [
            {"lane": "int4", "tensor": "other"},
            {"lane": "fp8", "tensor": name, "block": [128, 0]},
        ],
        "weights_kept_changed": {"fp8": [f"kept.{number}" for number in range(5)]},
    }
    rules = budget("max = 0.01", "weights.block_error_max")
    assert one(results, rules).reason.endswith(f": {name}, tile at row 128, column 0")
    changed_ = changed(results, "weights.kept_changed", "fp8", lambda m: replace(m, value=5.0, ci_low=5.0, ci_high=5.0))
    reason = one(changed_, budget("max = 0", "weights.kept_changed")).reason
    assert reason.endswith(": kept.0, kept.1, kept.2 and 2 more")


def test_healthy_lanes_pass_and_the_verdict_survives_json() -> None:
    results = synthetic_results(lanes=("fp8",))
    assert settle(results, default_budget()).status == "pass"
    again = Results.from_json(results.to_json())
    assert again.verdict == results.verdict


def test_judging_and_rendering_import_no_torch() -> None:
    names = [
        "budget",
        "drift",
        "baseline",
        "decision",
        "history",
        "history_markdown",
        "history_page",
        "judged",
        "likeness",
        "record",
        "rules",
        "suspicion",
        "html",
        "markdown",
        "junit",
        "tables",
        "plots",
        "view",
        "verdict_view",
        "folder",
        "terminal",
        "stages",
    ]
    imports = "; ".join(f"import qconvert_reports.{name}" for name in names)
    code = f"import sys; sys.path[:0] = {sys.path!r}; {imports}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

"""Too good to be true: each sign flagged when it is put there, none on healthy lanes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qconvert_evals.results import Measurement, Results
from qconvert_reports.budget import default_budget
from qconvert_reports.drift import judge
from qconvert_reports.record import Record
from qconvert_reports.suspicion import too_good
from tests.reports.synthetic import synthetic_results


def with_values(*rows: Measurement) -> Results:
    """The healthy record with these measurements in place of its own, or added."""
    results = synthetic_results(layers=1, lanes=("fp8", "int4"))
    keys = {(one.name, one.lane, one.slice) for one in rows}
    kept = [m for m in results.measurements if (m.name, m.lane, m.slice) not in keys]
    return replace(results, measurements=[*kept, *rows])


def row(
    name: str, value: float, half: float = 0.0, at: str = "all", unit: str = "fraction", n: int = 20480,
    floor: float | None = None,
) -> Measurement:  # fmt: skip
    return Measurement(name, "fp8", at, value, unit, n, value - half, value + half, floor)


def test_healthy_lanes_raise_no_suspicion() -> None:
    record = Record(synthetic_results(lanes=("fp8", "int4")))
    assert not too_good(record, "fp8") + too_good(record, "int4")


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        (row("logits.kl_max", 0.0, unit="nats", floor=0.001), "fail", "compared with itself"),
        (row("logits.kl_mean", 2e-5, 5e-6, unit="nats", floor=6e-5), "inconclusive", "noise floor"),
        (row("logits.top1_agreement", 1.0, floor=0.995), "inconclusive", "compared with itself"),
        (row("weights.relative_error", 0.0, unit="ratio"), "inconclusive", "dequantized from this very grid"),
        (row("logits.ppl_ratio", 0.95, 0.01, unit="ratio"), "inconclusive", "does not teach"),
        (row("mtp.acceptance_greedy", 1.0, at="position=1", n=9000), "inconclusive", "verifier accept everything"),
        (row("mtp.acceptance_live", 1.0, at="position=1", n=1200), "inconclusive", "verifier accept everything"),
        (
            row("mtp.acceptance_greedy_difference", 0.2, 0.02, at="position=1"),
            "inconclusive",
            "verifier accept everything",
        ),
        (row("bench.x.acc_difference", 0.06, 0.02, n=900), "inconclusive", "+6.00 pp"),
    ],
    ids=lambda one: one.name if isinstance(one, Measurement) else "",
)
def test_each_sign_is_flagged(fault: Measurement, status: str, words: str) -> None:
    results = with_values(fault, row("weights.quantized_tensors", 96.0, unit="count"))
    rows = [one for one in judge(results, default_budget()).rows if one.rule == "too good"]
    assert [(one.status, one.lane, one.measurement) for one in rows] == [(status, "fp8", fault.name)]
    assert words in rows[0].reason
    assert judge(results, default_budget()).status != "pass"


@pytest.mark.parametrize(
    "honest",
    [
        row("logits.kl_mean", 5e-5, 4e-5, unit="nats", floor=6e-5),
        row("logits.top1_agreement", 1.0, floor=1.0),
        row("logits.top1_agreement", 1.0, n=200, floor=0.99),
        row("logits.ppl_ratio", 0.985, 0.01, unit="ratio"),
        row("mtp.acceptance_live", 1.0, at="position=1", n=40),
        row("bench.x.acc_difference", 0.06, 0.05, n=900),
        row("bench.x.acc_difference", 0.06, 0.02, n=90),
        row("mtp.acceptance_greedy_difference", 0.2, 0.02, at="position=1", n=52),
    ],
    ids=lambda one: one.name,
)
def test_luck_is_not_suspicious(honest: Measurement) -> None:
    assert not too_good(Record(with_values(honest)), "fp8")


def test_the_base_given_as_a_candidate_certifies_nothing() -> None:
    unmoved = (row("logits.kl_max", 0.0, unit="nats"), row("weights.relative_error", 0.0, unit="ratio"))
    (found,) = too_good(Record(with_values(*unmoved, row("weights.quantized_tensors", 0.0, unit="count"))), "fp8")
    assert found.status == "inconclusive"
    assert "no tensor of this lane is quantized" in found.reason
    assert not too_good(Record(with_values(*unmoved)), "fp8")  # a record that does not say is not accused

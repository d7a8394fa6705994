"""results.json: round trip, refusals, and that missing never turns into zero."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qconvert.errors import UserError
from qconvert_evals.results import (
    SCHEMA_VERSION,
    LaneIdentity,
    Measurement,
    Missing,
    Results,
    Verdict,
    VerdictRow,
)

FIELDS = ["name", "lane", "slice", "value", "unit", "n", "ci_low", "ci_high", "noise_floor", "exact"]
TOP = ["schema_version", "created", "tool", "lanes", "measurements", "missing", "verdict", "figures"]


def example() -> Results:
    return Results(
        created="2026-01-01T00:00:00+00:00",
        tool={"name": "qconvert"},
        lanes=[
            LaneIdentity(
                "fp8", "candidate", "models/x", None, {"config.json": "00"}, {"scheme": "s"}, {}, {"torch": "2"}
            )
        ],
        measurements=[
            Measurement("logits.kl_mean", "fp8", "all", 0.003, "nats", 100, 0.002, 0.004, 1e-5),
            Measurement("mtp.accept_length", "fp8", "domain=prosa,größe", None, "tokens", 0),
        ],
        missing=[Missing("mtp.accept_length", "fp8", "all", "the checkpoint has no MTP head")],
        verdict=Verdict(
            "pass", [VerdictRow("pass", "r", "fp8", "logits.kl_mean", "all", 0.003, (0.002, None), "<= 0.02", "")]
        ),
        figures={"worst_tokens": [{"token": "\u2028é\n"}]},
    )


def test_round_trip(tmp_path: Path) -> None:
    results = example()
    results.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == results


def test_field_order_is_the_schemas() -> None:
    raw = json.loads(example().to_json())
    assert list(raw) == TOP and list(raw["measurements"][0]) == FIELDS
    assert raw["measurements"][1]["value"] is None


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_are_finite_or_absent(number: float) -> None:
    with pytest.raises(ValueError, match="kl_mean"):
        Measurement("logits.kl_mean", "fp8", "all", number, "nats", 1)
    results = example()
    results.figures["bad"] = number
    with pytest.raises(ValueError, match="JSON"):
        results.to_json()


def edited(**changes: object) -> str:
    raw = json.loads(example().to_json())
    return json.dumps(raw | changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not a results file"),
        ("[1]", "not a results file"),
        ('{"schema_version": true}', "not a results file"),
        (edited(schema_version=SCHEMA_VERSION + 1), "newer qconvert"),
        (edited(surprise=1), "malformed Results"),
        (edited(measurements=[{"name": "x"}]), "malformed Measurement"),
        (edited(lanes=[7]), "malformed LaneIdentity"),
    ],
)
def test_refusals(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Results.from_json(text)


def test_unreadable_file_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        Results.load(tmp_path / "none.json")


def test_find() -> None:
    results = example()
    assert results.find("logits.kl_mean", "fp8") is results.measurements[0]
    assert results.find("logits.kl_mean", "int4") is None


def test_reading_results_needs_no_torch() -> None:
    code = "import sys, qconvert_evals.results; sys.exit('torch' in sys.modules)"
    path = [part for part in sys.path if part]
    assert subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}; {code}"]).returncode == 0

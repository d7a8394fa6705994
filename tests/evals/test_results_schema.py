"""The schemas of results.json: frozen, equal to the dataclasses, and older versions are still read."""

from __future__ import annotations

import hashlib
import json
import types
import typing
from dataclasses import fields, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

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
from qconvert_evals.results_upgrade import STEPS
from qconvert_reports.budget import default_budget
from qconvert_reports.drift import judge, settle
from tests.reports.synthetic import synthetic_results

V1, V2 = (Path(__file__).parents[1] / f"fixtures/results.v{version}.json" for version in (1, 2))
# A published version never changes: a field more, less or of another meaning is a new version with a new file.
FROZEN = {
    1: "369ec8a2c053f41db73426365598fb487296a698fef16fe28fb4f860d90ca794",
    2: "01e6083e356aba74269226929b620c06c15dd14527f09d1fafca901298bdda05",
    3: "d716de7ced0899227b10f8e5d50a7b414b55677414bc1826f84eeec91c44da62",
}


def schema(version: int) -> dict[str, Any]:
    return json.loads(files("qconvert_evals").joinpath(f"schemas/results.v{version}.json").read_text(encoding="utf-8"))


def check(text: str, version: int) -> None:
    Draft202012Validator(schema(version)).validate(json.loads(text))


@pytest.mark.parametrize("version", FROZEN)
def test_published_schemas_are_frozen_and_sound(version: int) -> None:
    Draft202012Validator.check_schema(schema(version))
    text = json.dumps(schema(version), sort_keys=True)
    assert hashlib.sha256(text.encode()).hexdigest() == FROZEN[version], "make a new version instead"


def test_every_version_is_frozen_and_has_its_step() -> None:
    assert set(FROZEN) == set(range(1, SCHEMA_VERSION + 1))
    assert set(STEPS) == set(range(1, SCHEMA_VERSION))


def described(hint: Any) -> Any:
    """The JSON types of an annotation, without what a schema adds to them."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        return frozenset().union(*(described(one) for one in inside))
    names = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
    if hint in names:
        return frozenset({names[hint]})
    if origin in (dict, list, tuple):
        return frozenset({"object" if origin is dict else "array"})
    return frozenset({hint.__name__})


def allowed(part: dict[str, Any]) -> Any:
    """The same of a property in the schema."""
    if "anyOf" in part:
        return frozenset().union(*(allowed(one) for one in part["anyOf"]))
    if "$ref" in part:
        return frozenset({part["$ref"].removeprefix("#/$defs/")})
    if "const" in part or "enum" in part:
        kinds = {str: "string", int: "integer"}
        return frozenset(kinds[type(one)] for one in part.get("enum", [part.get("const")]))
    kind = part["type"]
    return frozenset([kind] if isinstance(kind, str) else kind)


@pytest.mark.parametrize("kind", [Results, LaneIdentity, Measurement, Missing, Verdict, VerdictRow])
def test_the_schema_and_the_dataclasses_are_one(kind: type[Any]) -> None:
    part = schema(SCHEMA_VERSION)["$defs"][kind.__name__]
    names = [one.name for one in fields(kind)]
    assert list(part["properties"]) == names
    assert part["required"] == names and part["additionalProperties"] is False
    hints = typing.get_type_hints(kind)
    assert {name: allowed(part["properties"][name]) for name in names} == {
        name: described(hints[name]) for name in names
    }
    for name in names:
        inside = typing.get_args(hints[name])
        if typing.get_origin(hints[name]) is list:
            assert part["properties"][name]["items"] == {"$ref": f"#/$defs/{inside[0].__name__}"}


def test_what_is_written_fits_the_schema() -> None:
    results = synthetic_results(lanes=("fp8", "int4"))
    check(results.to_json(), SCHEMA_VERSION)
    settle(results, default_budget())
    check(results.to_json(), SCHEMA_VERSION)
    assert not Draft202012Validator(schema(SCHEMA_VERSION)).is_valid({**json.loads(results.to_json()), "surprise": 1})


def test_a_file_of_version_1_is_still_read_judged_and_written() -> None:
    text = V1.read_text(encoding="utf-8")
    check(text, 1)
    results = Results.load(V1)
    raw = json.loads(text)
    assert results.schema_version == SCHEMA_VERSION
    assert len(results.measurements) == len(raw["measurements"]) > 100
    assert results.verdict is not None and results.verdict.status == raw["verdict"]["status"] == "pass"
    assert {(row.n, row.needed_n) for row in results.verdict.rows} == {(None, None)}
    assert {row.decided for row in results.verdict.rows} == {"not recorded by this version of the file"}
    check(results.to_json(), SCHEMA_VERSION)
    again = judge(results, default_budget())
    # The bound on overlap has a meaning of its own since; it needs what no old file says, and says so itself.
    old = {(row.rule, row.lane, row.slice): row.status for row in results.verdict.rows if "overlap" not in row.rule}
    assert {(row.rule, row.lane, row.slice): row.status for row in again.rows}.items() >= old.items()
    overlap = [row for row in again.rows if row.measurement == "router.topk_overlap"]
    assert overlap and {row.status for row in overlap} == {"inconclusive"}
    assert all("does not say how many of how many experts" in row.reason for row in overlap)


def test_a_file_of_version_2_is_still_read_judged_and_written() -> None:
    text = V2.read_text(encoding="utf-8")
    check(text, 2)
    results, raw = Results.load(V2), json.loads(text)
    assert [(one.name, one.noise_lane) for one in results.lanes] == [
        ("bf16", None), ("bf16-noise", None), ("fp8", "bf16-noise")
    ]  # fmt: skip
    marked = {m.name for m in results.measurements if m.exact}
    assert "weights.relative_error" in marked and "logits.nonfinite_tokens" in marked
    assert marked == {row["name"] for row in raw["measurements"] if row["ci_low"] == row["ci_high"] == row["value"]}
    assert results.verdict is not None and results.verdict.status == raw["verdict"]["status"] == "pass"
    assert {row.margin for row in results.verdict.rows} == {None}
    check(results.to_json(), SCHEMA_VERSION)
    again = judge(results, default_budget())
    assert [(row.rule, row.slice, row.status, row.reason) for row in again.rows if row.rule.startswith("weights")] == [
        (row.rule, row.slice, row.status, row.reason) for row in results.verdict.rows if row.rule.startswith("weights")
    ]


def test_version_1_without_a_verdict_is_read() -> None:
    raw = {**json.loads(V1.read_text(encoding="utf-8")), "verdict": None}
    assert Results.from_json(json.dumps(raw)).verdict is None


@pytest.mark.parametrize("verdict", [7, {"status": "pass"}, {"status": "pass", "rows": [7]}])
def test_a_damaged_old_file_is_the_users(verdict: Any) -> None:
    raw = {**json.loads(V1.read_text(encoding="utf-8")), "verdict": verdict}
    with pytest.raises(UserError, match="malformed"):
        Results.from_json(json.dumps(raw), "old.json")


def test_the_current_version_is_not_touched() -> None:
    results = replace(synthetic_results(layers=1), figures={})
    settle(results, default_budget())
    assert Results.from_json(results.to_json()) == results

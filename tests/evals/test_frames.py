"""Results as frames: what goes in comes out, with the same types whatever the record holds."""

from __future__ import annotations

import doctest
import math
import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert.errors import UserError
from qconvert_evals import frames, results
from qconvert_evals.results import LaneIdentity, Measurement, Missing, Results, Verdict, VerdictRow
from qconvert_evals.slices import conditions
from tests.evals.test_results import example

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)
measurements = st.lists(
    st.builds(
        Measurement,
        *(words, words, words),
        value=numbers,
        unit=words,
        n=st.integers(0, 2**53),
        ci_low=numbers,
        ci_high=numbers,
        noise_floor=numbers,
        exact=st.booleans(),
    ),
    max_size=5,
)


def read_back(kind: type[Any], frame: pandas.DataFrame) -> list[Any]:
    """Records from rows: NaN and <NA> are None."""
    names = [one.name for one in fields(kind)]
    rows = frame[names].astype(object).where(frame[names].notna(), None)
    return [kind(**row) for row in rows.to_dict("records")]


@given(rows=measurements)
@settings(max_examples=60, deadline=None)
def test_a_frame_gives_the_measurements_back(rows: list[Measurement]) -> None:
    record = Results(measurements=rows)
    assert read_back(Measurement, record.to_frame()) == rows
    assert read_back(Measurement, record.to_frame(slices=True)) == rows
    assert dict(record.to_frame().dtypes.astype(str)) == frames.MEASUREMENTS


def test_minus_zero_and_the_smallest_number_survive() -> None:
    values = [-0.0, 5e-324, 1.7976931348623157e308, 1 / 3]
    rows = [replace(example().measurements[0], value=value) for value in values]
    back = read_back(Measurement, Results(measurements=rows).to_frame())
    assert [one.value.hex() for one in back] == [value.hex() for value in values]


def test_missing_and_verdict_give_their_records_back() -> None:
    record = example()
    assert read_back(Missing, record.to_frame("missing")) == record.missing
    rows = [replace(row, ci=(0.1, None), n=3, margin=-1.5) for row in record.verdict.rows] + record.verdict.rows
    frame = replace(record, verdict=Verdict("fail", rows)).to_frame("verdict")
    frame["ci"] = [
        tuple(None if math.isnan(end) else end for end in ends) for ends in frame[["ci_low", "ci_high"]].values
    ]
    assert read_back(VerdictRow, frame) == rows
    assert dict(replace(record, verdict=None).to_frame("verdict").dtypes.astype(str)) == frames.VERDICT


def test_lanes_have_a_column_for_each_thing_said() -> None:
    one = LaneIdentity("fp8", "candidate", "x", None, {"a": "0"}, {"scheme": "s"}, {"cache": {"of": 2}}, {"torch": "2"})
    two = replace(one, name="bf16", recipe={}, noise_lane="bf16-noise", versions={"torch": "3"})
    frame = Results(lanes=[one, two]).to_frame("lanes").set_index("name")
    assert list(frame.columns) == [
        *("role", "path", "revision", "noise_lane", "recipe.scheme", "numerics.cache", "versions.torch")
    ]
    assert frame.loc["fp8", "numerics.cache"] == {"of": 2} and frame.loc["bf16", "recipe.scheme"] is None
    assert frame["versions.torch"].to_dict() == {"fp8": "2", "bf16": "3"}
    assert frame["noise_lane"].isna().tolist() == [True, False]
    assert Results().to_frame("lanes").empty


def test_slices_become_columns_of_text() -> None:
    slices = ["all", "layer=mtp,feed=free", "layer=7,feed=local", "domain=prosa,größe,position=1", "lane=x"]
    rows = [Measurement("a.b", "fp8", one, 0.5, "", 1) for one in slices]
    frame = Results(measurements=rows).to_frame(slices=True)
    assert frame["layer"].fillna("").tolist() == ["", "mtp", "7", "", ""]
    assert frame["feed"].fillna("").tolist() == ["", "free", "local", "", ""]
    assert frame["domain"].fillna("").tolist() == ["", "", "", "prosa,größe", ""]
    assert frame["lane"].tolist() == ["fp8"] * 5 and frame["slice.lane"].fillna("").tolist() == [*[""] * 4, "x"]
    assert {str(frame[name].dtype) for name in ("layer", "feed", "domain", "position", "slice.lane")} == {"string"}
    assert list(Results(measurements=rows[:1]).to_frame(slices=True).columns) == list(frames.MEASUREMENTS)


def test_conditions_keep_a_comma_in_a_value() -> None:
    assert conditions("all") == {"all": ""} and conditions("layer=7, feed=local") == {"layer": "7", "feed": "local"}
    assert conditions("filter=a,b,c") == {"filter": "a,b,c"}
    assert conditions("domain=x,y,position=1") == {"domain": "x,y", "position": "1"}


@pytest.mark.parametrize(("of", "slices"), [("measurement", False), ("figures", False), ("missing", True)])
def test_another_frame_is_refused(of: str, slices: bool) -> None:
    with pytest.raises(UserError, match="measurements, missing, verdict, lanes"):
        example().to_frame(of, slices=slices)


def test_a_value_of_another_type_is_named() -> None:
    rows = [replace(example().measurements[0], n=None)]  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"another type(.|\n)*where: n\n"):
        Results(measurements=rows).to_frame()


def test_without_pandas_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"needs the package `pandas`(.|\n)*qconvert\[evals\]"):
        example().to_frame()


def test_a_record_is_read_without_pandas() -> None:
    code = "import sys; import qconvert_evals.results as r; r.Results.from_json(r.Results().to_json()); "
    code += "sys.exit(any(name in sys.modules for name in ('pandas', 'numpy', 'torch')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_example_of_the_docstring_is_true() -> None:
    found = doctest.DocTestFinder().find(results.Results.to_frame, globs=vars(results))
    (example_,) = [one for one in found if one.examples]
    assert len(example_.examples) == 3 and doctest.DocTestRunner().run(example_).failed == 0

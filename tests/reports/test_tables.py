"""tables/*.csv and *.parquet: both say what the results say, to the last digit and with any text in them."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import pandas
import pytest
from hypothesis import example, given, settings

from qconvert.errors import UserError
from qconvert_evals.results import Measurement, Missing, Results
from qconvert_reports import folder
from qconvert_reports.budget import default_budget
from qconvert_reports.cli.finish import Judging, _write
from qconvert_reports.drift import settle
from qconvert_reports.tables import COLUMNS, VERDICT, csv_tables, frames, parquet_tables
from tests.evals.test_frames import measurements, words
from tests.reports.synthetic import synthetic_results


def plain(text: str) -> str:
    """Text of a CSV field as it was before it was made safe for spreadsheets."""
    return text[1:] if text.startswith("'") else text


def cells(rows: pandas.DataFrame) -> list[dict[str, str]]:
    """What a CSV of these rows is to say."""
    return [{name: said(value) for name, value in row.items()} for row in rows.astype(object).to_dict("records")]


def said(value: object) -> str:
    return "" if pandas.isna(value) else repr(value) if isinstance(value, float) else str(value)


def read(text: str) -> list[dict[str, str]]:
    return [{name: plain(cell) for name, cell in row.items()} for row in csv.DictReader(io.StringIO(text, newline=""))]


@given(rows=measurements, why=words)
@example(rows=[], why="a\rb")  # Python's writer would leave it bare
@example(rows=[], why='a,"b"\n\x00 \u2028')
@settings(max_examples=60, deadline=None)
def test_any_text_and_number_comes_back(rows: list[Measurement], why: str) -> None:
    record = Results(measurements=rows, missing=[Missing(why, why, why, why)])
    tables, parquet = csv_tables(record), parquet_tables(record)
    for name, frame in frames(record).items():
        assert read(tables[f"{name}.csv"]) == cells(frame)
        back = pandas.read_parquet(io.BytesIO(parquet[f"{name}.parquet"]))
        pandas.testing.assert_frame_equal(back, frame, check_exact=True)
    every = [frame for name, frame in frames(record).items() if name != "missing"]
    assert sum(map(len, every)) == len(rows)  # no family hides another


@given(text=words, after=words)
@settings(max_examples=30, deadline=None)
def test_no_cell_is_a_formula(text: str, after: str) -> None:
    record = Results(missing=[Missing(sign + text, after, text, after) for sign in "=+-@\t\r"])
    for row in csv.reader(io.StringIO(csv_tables(record)["missing.csv"], newline="")):
        assert all(cell == "-" or cell[:1] not in ("=", "+", "-", "@", "\t", "\r") for cell in row)


def test_families_of_one_file_name_stand_in_one_file() -> None:
    names = ["a b.x", "a/b.x", "verdict.x", "missing.x", ".x", "größe.x"]
    record = Results(measurements=[Measurement(name, "fp8", "all", 1.0, "", 1) for name in names])
    settle(record, default_budget())
    found = frames(record)
    assert {name: len(rows) for name, rows in found.items() if name != "verdict"} == {
        "a_b": 2, "verdict_": 1, "missing_": 1, "_": 1, "größe": 1, "missing": 0
    }  # fmt: skip
    assert list(found["verdict"].columns) == VERDICT


@pytest.fixture(scope="module")
def judged() -> Results:
    record = synthetic_results(layers=1)
    settle(record, default_budget())
    return record


def test_the_folder_holds_both_and_they_are_the_results(judged: Results, tmp_path: Path) -> None:
    assert folder.write_report(judged, tmp_path / "report") == []
    tables = tmp_path / "report" / "tables"
    names = {path.stem for path in tables.glob("*.csv")}
    assert names == {path.stem for path in tables.glob("*.parquet")} >= {"logits", "router", "verdict", "missing"}
    parts = [pandas.read_parquet(tables / f"{name}.parquet") for name in sorted(names - {"verdict", "missing"})]
    assert all(list(part.columns) == COLUMNS for part in parts)
    held = {
        tuple(row) for row in pandas.concat(parts)[["measurement", "lane", "slice", "value"]].itertuples(index=False)
    }
    assert held == {(m.name, m.lane, m.slice, m.value) for m in judged.measurements}
    for name in names:
        assert read((tables / f"{name}.csv").read_bytes().decode()) == cells(
            pandas.read_parquet(tables / f"{name}.parquet")
        )


def test_without_pyarrow_there_is_no_parquet_and_that_is_said_once(
    judged: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    _write(judged, tmp_path / "report", None)
    printed = capsys.readouterr()
    assert printed.err.count("pyarrow") == 1 and "qconvert[data]" in printed.err and not printed.out
    found = {path.suffix for path in (tmp_path / "report" / "tables").iterdir()}
    assert found == {".csv"}


def test_without_pandas_a_report_is_refused_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("qconvert_reports.folder", "qconvert_reports.tables"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"needs the package `pandas`(.|\n)*qconvert\[evals\]"):
        Judging(None, None, tmp_path / "report")
    assert not (tmp_path / "report").exists()

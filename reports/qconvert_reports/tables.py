"""tables/*.csv and tables/*.parquet: the measurements as plain tables, one a family (logits, router, ...), and verdict
and missing.

Columns: lane, measurement, slice, value, unit, n, ci_low, ci_high, noise_floor, exact. A number that is not there is an
empty field, and the table `missing` says why. Floats have all their digits: what is read back is what was measured.
Text is quoted, since Python's writer leaves a lone carriage return bare and readers would cut the row there. In CSV,
text that a spreadsheet would take for a formula gets an apostrophe in front, because lane names come from users; text
that begins with one gets another, so that taking one off gives the text back. Parquet holds the text itself.

Both are written by pandas, Parquet through pyarrow and only where that is installed. pandas is imported up here, so
that a command finds out before it measures that it cannot write its report. Left out: plots and per-token data, which
results.json has under `figures`.
"""

from __future__ import annotations

import csv
from importlib.util import find_spec

import pandas

from qconvert_evals.results import Results
from qconvert_reports.labels import family

COLUMNS = ["lane", "measurement", "slice", "value", "unit", "n", "ci_low", "ci_high", "noise_floor", "exact"]
WHY = ["lane", "measurement", "slice", "why"]
VERDICT = [
    *("status", "lane", "measurement", "slice", "value", "ci_low", "ci_high"),
    *("bound", "reason", "decided", "n", "needed_n", "margin", "rule"),
]
RESERVED = ("missing", "verdict")
FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")


def frames(results: Results) -> dict[str, pandas.DataFrame]:
    """Name of a table -> its rows, in the order of the results."""
    measured = results.to_frame().rename(columns={"name": "measurement"})[COLUMNS]
    families = measured["measurement"].map(_table_name)
    found = {name: rows.reset_index(drop=True) for name, rows in measured.groupby(families, sort=False)}
    found["missing"] = results.to_frame("missing").rename(columns={"name": "measurement"})[WHY]
    if results.verdict is not None:
        found["verdict"] = results.to_frame("verdict")[VERDICT]
    return found


def csv_tables(results: Results) -> dict[str, str]:
    """File name -> text."""
    return {f"{name}.csv": _csv(rows) for name, rows in frames(results).items()}


def parquet_tables(results: Results) -> dict[str, bytes]:
    """File name -> bytes; see `has_parquet`."""
    found = frames(results)
    return {f"{name}.parquet": rows.to_parquet(index=False, engine="pyarrow") for name, rows in found.items()}


def has_parquet() -> bool:
    """Whether Parquet can be written here."""
    return find_spec("pyarrow") is not None


def _csv(rows: pandas.DataFrame) -> str:
    safe = rows.copy()
    for name in safe.select_dtypes("string"):
        safe[name] = safe[name].map(_disarmed, na_action="ignore")
    text: str = safe.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    return text


def _disarmed(text: str) -> str:
    """A lone dash is just a dash."""
    return "'" + text if text.startswith(FORMULA) and text != "-" else text


def _table_name(measurement: str) -> str:
    """A family becomes a file name, so nothing but letters, digits, `-` and `_` stays."""
    name = "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in family(measurement)) or "_"
    return f"{name}_" if name in RESERVED else name

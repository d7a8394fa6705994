"""tables/*.csv: the measurements as plain tables, one file a family (logits.csv, router.csv, ...), and verdict.csv.

Columns: lane, measurement, slice, value, unit, n, ci_low, ci_high, noise_floor. A number that is not there is an empty
field, and missing.csv says why. Text that a spreadsheet would take for a formula gets an apostrophe in front, because
lane names come from users. Left out: plots and per-token data, which results.json has under `figures`.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

from qconvert_evals.results import Results
from qconvert_reports.labels import family

COLUMNS = ("lane", "measurement", "slice", "value", "unit", "n", "ci_low", "ci_high", "noise_floor")
DECIDED = ("decided", "n", "needed_n")


def csv_tables(results: Results) -> dict[str, str]:
    """File name -> text."""
    tables: dict[str, list[Sequence[object]]] = {}
    for m in results.measurements:
        row = (m.lane, m.name, m.slice, m.value, m.unit, m.n, m.ci_low, m.ci_high, m.noise_floor)
        tables.setdefault(family(m.name), []).append(row)
    written = {f"{_safe_name(name)}.csv": _csv(COLUMNS, rows) for name, rows in tables.items()}
    missing = [(one.lane, one.name, one.slice, one.why) for one in results.missing]
    written["missing.csv"] = _csv(("lane", "measurement", "slice", "why"), missing)
    if results.verdict is not None:
        rows = [
            (r.status, r.lane, r.measurement, r.slice, r.value, *r.ci, r.bound, r.reason, r.decided, r.n, r.needed_n)
            for r in results.verdict.rows
        ]
        head = ("status", "lane", "measurement", "slice", "value", "ci_low", "ci_high", "bound", "reason", *DECIDED)
        written["verdict.csv"] = _csv(head, rows)
    return written


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_field(one) for one in row] for row in rows)
    return out.getvalue()


def _field(value: object) -> object:
    """Numbers in full precision; text that starts like a formula is disarmed, a lone dash is just a dash."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") and value != "-":
        return "'" + value
    return "" if value is None else repr(value) if isinstance(value, float) else value


def _safe_name(name: str) -> str:
    """A family becomes a file name, so nothing but letters, digits, `-` and `_` stays."""
    return "".join(sign if sign.isalnum() or sign in "-_" else "_" for sign in name) or "_"

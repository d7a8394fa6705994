"""Results as pandas frames, one row a record and columns of fixed types: for analysis, joins and the report's tables.

    measurements   name, lane, slice, value, unit, n, ci_low, ci_high, noise_floor, exact
    missing        name, lane, slice, why
    verdict        status, rule, lane, measurement, slice, value, ci_low, ci_high, bound, reason, decided, n, needed_n,
                   margin
    lanes          name, role, path, revision, noise_lane, and a column for each entry of recipe, numerics and versions
                   (`numerics.compute_dtype`)

Text is pandas' "string", a number float64 with NaN for None (a record holds no NaN), a whole number int64, or Int64
where it can be None. With `slices` the measurements have a column of text for each condition that any slice names
(`layer`, `feed`, `domain`, ...), <NA> where a slice does not name it: `layer` is text because the MTP head's is "mtp".

pandas is imported when a frame is made, so that a record can be read without it. Left out: the lanes' files and
`figures`, which are no tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from qconvert.errors import UserError
from qconvert_evals.slices import conditions

if TYPE_CHECKING:
    import pandas

    from qconvert_evals.results import LaneIdentity, Measurement, Results

TEXT, NUMBER, COUNT, MAYBE = "string", "float64", "int64", "Int64"
PLACE = {"name": TEXT, "lane": TEXT, "slice": TEXT}
SPAN = {"ci_low": NUMBER, "ci_high": NUMBER}
MEASUREMENTS = {**PLACE, "value": NUMBER, "unit": TEXT, "n": COUNT, **SPAN, "noise_floor": NUMBER, "exact": "bool"}
MISSING = {**PLACE, "why": TEXT}
VERDICT = {
    **{"status": TEXT, "rule": TEXT, "lane": TEXT, "measurement": TEXT, "slice": TEXT, "value": NUMBER, **SPAN},
    **{"bound": TEXT, "reason": TEXT, "decided": TEXT, "n": MAYBE, "needed_n": MAYBE, "margin": NUMBER},
}
LANES = {"name": TEXT, "role": TEXT, "path": TEXT, "revision": TEXT, "noise_lane": TEXT}
PARTS = ("recipe", "numerics", "versions")
KINDS = ("measurements", "missing", "verdict", "lanes")


def frame(results: Results, of: str, slices: bool = False) -> pandas.DataFrame:
    """One of KINDS as a frame; UserError where pandas is not installed."""
    if of not in KINDS or (slices and of != "measurements"):
        expected = "one of " + ", ".join(KINDS) + "; slices=True with measurements alone"
        raise UserError("there is no such frame of results", expected=expected, found=f"of={of!r}, slices={slices}")
    if of == "lanes":
        return _lanes(results.lanes)
    if of == "missing":
        return _frame(map(vars, results.missing), MISSING)
    if of == "verdict":
        rows = results.verdict.rows if results.verdict is not None else []
        return _frame(({**vars(row), "ci_low": row.ci[0], "ci_high": row.ci[1]} for row in rows), VERDICT)
    made = _frame(map(vars, results.measurements), MEASUREMENTS)
    return made.join(_conditions(results.measurements)) if slices else made


def import_pandas() -> Any:
    """The module; one message where it is not installed."""
    try:
        import pandas
    except ModuleNotFoundError as error:
        missing = (error.name or "pandas").partition(".")[0]
        raise UserError(
            f"a frame of results needs the package `{missing}`, which is not installed",
            fix="pip install 'qconvert[evals]'",
        ) from error
    return pandas


def _frame(rows: Iterable[Mapping[str, Any]], types: Mapping[str, str]) -> pandas.DataFrame:
    kept = list(rows)
    made = import_pandas().DataFrame({name: [row[name] for row in kept] for name in types})
    for name, type_ in types.items():
        try:
            made[name] = made[name].astype(type_)
        except (TypeError, ValueError) as error:  # a results file made by hand; a record does not check its types
            what = "a record holds a value of another type"
            raise UserError(what, where=name, expected=type_, found=str(error)) from error
    return made


def _conditions(measurements: Iterable[Measurement]) -> pandas.DataFrame:
    """A column of text for each condition; one that is called like a column of a measurement becomes `slice.<name>`."""
    rows = [{} if one.slice == "all" else conditions(one.slice) for one in measurements]
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {f"slice.{name}" if name in MEASUREMENTS else name: [row.get(name) for row in rows] for name in names}
    return import_pandas().DataFrame(columns, index=range(len(rows)), dtype=TEXT)


def _lanes(lanes: list[LaneIdentity]) -> pandas.DataFrame:
    said = [{f"{part}.{key}": value for part in PARTS for key, value in vars(one)[part].items()} for one in lanes]
    names = dict.fromkeys(name for row in said for name in row)
    columns = {name: [row.get(name) for row in said] for name in names}
    more = import_pandas().DataFrame(columns, index=range(len(lanes)), dtype=object)
    return _frame(map(vars, lanes), LANES).join(more)

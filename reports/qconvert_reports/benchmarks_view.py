"""Benchmarks as tables: scores of both precisions on the same documents, and what may be concluded from them.

Made from `figures["tasks"]["rows"]`, one a metric and lane. The finding of a row is, in this order:

    differs         p of "no difference", corrected over all tasks of the lane (Holm), is below 5%; "by less than the
                    margin" where the next holds as well: a difference that is real and small
    no worse        p of "worse by the margin or more", corrected likewise, is below 5%: the lane is certified not to
                    have lost that much
    cannot tell     neither; the smallest drop that would have been found four times in five stands beside it

Where documents of a task share a passage, the finding says by which field they were taken together. Parts of groups are
not in the family that is corrected, so nothing is concluded from them one by one.

"Cannot tell" is the usual finding of a small benchmark and no praise: with 64 documents a drop of several points goes
unseen. Left out: scores by document, which are in results.json for those that flipped.
"""

from __future__ import annotations

from typing import Any

from qconvert_evals.results import BASE_LANE, reference_of
from qconvert_reports.labels import show_difference, show_value
from qconvert_reports.view import Cell, Index, Table, as_cell, lane_words

ALPHA = 0.05
COLUMNS = ("", "lane", "documents", "BF16", "score", "difference", "finding", "p (Holm)", "recovery", "lost / gained")


def benchmark_tables(index: Index) -> list[Table]:
    """The tasks asked for, parts of groups, and thoughts; tables without rows where nothing was run."""
    rows = _rows(index)
    asked = _table("Benchmarks", [row for row in rows if row.get("asked", True)])
    asked.rows.extend(_pooled_cells(index, lane, found) for lane, found in _pooled(index).items())
    parts = _table("Parts of groups", [row for row in rows if not row.get("asked", True)])
    return [asked, parts, _thoughts(index)]


def benchmark_lines(index: Index) -> list[str]:
    """One line a task and candidate, for a terminal; then one a candidate for its tasks together."""
    lines = [
        f"{_name(row)}, {row['lane']}: {show_value(row['score'][0], row['unit'])} "
        f"({show_difference(row['difference'][0], row['unit'])}): {finding(row)}"
        for row in _rows(index)
        if row.get("asked", True) and not row["noise"]
    ]
    together = ((lane, found) for lane, found in _pooled(index).items() if lane not in index.noise)
    return lines + [f"{len(found['tasks'])} tasks, {lane}: {pooled_finding(found)}" for lane, found in together]


def finding(row: dict[str, Any]) -> str:
    """What the row allows to say."""
    words, field = _concluded(row), row.get("clustered_by")
    return words if field is None else f"{words} ({row['clusters']:,} clusters by {field})"


def _concluded(row: dict[str, Any]) -> str:
    p_value, no_worse, unit = row.get("p_holm"), row.get("no_worse_holm"), row["unit"]
    if row.get("p_value") is None and row.get("no_worse") is None:
        return "nothing to pair"
    if not row.get("asked", True):
        return "part of its group's finding"
    margin = show_difference(row["margin"], unit).lstrip("+")
    certified = no_worse is not None and no_worse < ALPHA
    if p_value is not None and p_value < ALPHA:
        return f"differs, no worse by {margin}" if certified else "differs"
    if certified:
        return f"no worse by {margin}"
    seen = row.get("detectable")
    return "cannot tell" if seen is None else f"cannot tell: sees {show_difference(seen, unit).lstrip('+')} and more"


def _rows(index: Index) -> list[dict[str, Any]]:
    """In the order of tasks, candidates in front of the noise lanes."""
    record = index.results.figures.get("tasks") or {}
    rows = record.get("rows") or []
    order = list(dict.fromkeys((row["task"], row["metric"], row["filter"]) for row in rows))
    return sorted(rows, key=lambda row: (order.index((row["task"], row["metric"], row["filter"])), row["noise"]))


def _pooled(index: Index) -> dict[str, dict[str, Any]]:
    """Lane -> the exact test over its tasks, where there were two or more to pool."""
    record = index.results.figures.get("tasks") or {}
    return {lane: found for lane, found in (record.get("pooled") or {}).items() if found is not None}


def pooled_finding(found: dict[str, Any]) -> str:
    """What the exact test over all tasks allows to say; tasks with clusters are not in it."""
    words = "differs over all" if found["p_value"] < ALPHA else "no difference seen over all"
    out = f"; without {', '.join(found['clustered'])}, whose documents hang together" if found["clustered"] else ""
    return f"{words} (exact p {found['p_value']:.3f}){out}"


def _pooled_cells(index: Index, lane: str, found: dict[str, Any]) -> list[Cell]:
    dash = Cell("–")
    return [
        Cell(f"{len(found['tasks'])} tasks together"),
        Cell(lane_words(lane, index.noise)),
        Cell(f"{found['n']:,}"),
        *[dash] * 3,
        Cell(pooled_finding(found)),
        *[dash] * 2,
        Cell(f"{found['lost']} / {found['gained']}"),
    ]


def _table(title: str, rows: list[dict[str, Any]]) -> Table:
    table, before = Table(title, COLUMNS), ""
    for row in rows:
        name = _name(row)
        table.rows.append([Cell(name if name != before else ""), *_cells(row)])
        before = name
    return table


def _name(row: dict[str, Any]) -> str:
    filtered = "" if row["filter"] == "none" else f", {row['filter']}"
    return f"{row['task']} ({row['metric']}{filtered})"


def _cells(row: dict[str, Any]) -> list[Cell]:
    """A noise lane of a candidate is paired with that candidate, so BF16's score is not in its row."""
    unit, p_value, lane = row["unit"], row.get("p_holm"), row["lane"]
    flips = "–" if row["lost"] is None else f"{row['lost']} / {row['gained']}"
    return [
        Cell(lane_words(lane, [lane] if row["noise"] else [])),
        Cell(f"{row['n']:,}"),
        _triple(row["base"], unit) if reference_of(lane) == BASE_LANE else Cell("–"),
        _triple(row["score"], unit),
        _triple(row["difference"], unit, difference=True),
        Cell(finding(row)),
        Cell("–" if p_value is None else f"{p_value:.3f}"),
        Cell(show_value(row["recovery"][0], "fraction")),
        Cell(flips),
    ]


def _triple(found: list[float | None], unit: str, difference: bool = False) -> Cell:
    value, low, high = found
    show = show_difference if difference else show_value
    between = "" if low is None or high is None else f"[{show(low, unit)}, {show(high, unit)}]"
    return Cell(show(value, unit), between)


def _thoughts(index: Index) -> Table:
    """How long thoughts were and how many were cut off, by task and lane."""
    names = [name for name, _, _ in index.by_key if name.startswith("bench.") and name.endswith(".thought_tokens")]
    table = Table("Thoughts", ("", "lane", "tokens", "cut off"))
    for name in dict.fromkeys(names):
        task = name.removeprefix("bench.").removesuffix(".thought_tokens")
        for number, lane in enumerate([index.base, *index.candidates, *index.noise]):
            tokens = index.by_key.get((name, lane, "all"))
            if tokens is not None:
                cut = index.by_key.get((f"bench.{task}.thought_cut_off", lane, "all"))
                words = Cell(lane_words(lane, index.noise))
                table.rows.append([Cell(task if number == 0 else ""), words, as_cell(tokens), as_cell(cut)])
    return table

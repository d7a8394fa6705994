"""report.md and summary.md: for a pull-request comment and for a job's step summary, verdict first.

GitHub takes 65,536 characters in a comment and 1 MiB (of UTF-8) in a step summary, and drops a larger summary as a
whole. So the text is built from blocks in order of importance, and the first block that no longer fits ends it with a
notice. The summary has blocks that a comment has no room for: every layer, every check that did not pass. Details are
folded. The first line is a hidden marker by which a bot finds its own comment and edits it in place.

Names come from files and users: pipes, backticks, line ends and angle brackets are made harmless in every cell, and `@`
cannot mention anybody. Left out: plots, which a comment cannot hold; they are in report.html.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from qconvert_evals.results import Results
from qconvert_reports import view
from qconvert_reports.baseline import Against
from qconvert_reports.benchmarks_view import benchmark_tables
from qconvert_reports.certainty import certainty, text_lines
from qconvert_reports.labels import label, show_slice, show_value
from qconvert_reports.verdict_view import WORDS, Group, gate_line, groups, headline, show_margin

COMMENT_LIMIT = 65_536  # characters
SUMMARY_LIMIT = 1_048_576  # bytes
NOTICE = "\n_Cut here: the rest does not fit. Everything is in report.html and results.json._\n"
SHOWN_CHANGES = 30
SHOWN_MISSING = 400
MARKER = "<!-- qconvert drift report -->"
_MARKS = re.compile(r"([\\`*_\[\]|~#])")


def render_markdown(results: Results, found: Against | None = None, limit: int = COMMENT_LIMIT) -> str:
    """The report in at most `limit` characters."""
    return _cut(_blocks(results, found), limit, len)


def render_summary(results: Results, found: Against | None = None, limit: int = SUMMARY_LIMIT) -> str:
    """The report with every layer and every open check, in at most `limit` bytes of UTF-8."""
    return _cut(_blocks(results, found, long=True), limit, lambda text: len(text.encode("utf-8")))


def _cut(blocks: Iterable[str], limit: int, size: Callable[[str], int]) -> str:
    kept: list[str] = []
    room = limit - size(NOTICE)
    for block in blocks:
        room -= size(block)
        if room < 0:
            return "".join([*kept, NOTICE])
        kept.append(block)
    return "".join(kept)


def _blocks(results: Results, against: Against | None, long: bool = False) -> Iterable[str]:
    """Pieces in order of importance; each can stand at the end."""
    index = view.Index(results)
    found = groups(results)
    bad = [one for one in found if one.status in ("fail", "inconclusive")]
    status = results.verdict.status if results.verdict else "inconclusive"
    words = headline(results.verdict, results) if results.verdict else "this record has not been judged."
    yield f"{MARKER}\n## {WORDS[status]}: {escape(words)}\n\n"
    yield from (f"- **{WORDS[one.status]}** {escape(_gate(one))}\n" for one in bad)
    yield "\n" if bad else ""
    sure = certainty(results)
    yield "".join(f"{escape(sentence)}\n\n" for sentence in sure.sentences[:1] + text_lines(results))
    yield _table(view.summary(index)) + "\n"
    if against is not None:
        yield _changes(against)
    yield _fold("All checks", _checks(found))
    yield _fold("How sure is this?", "\n\n".join(map(escape, sure.sentences)) + "\n\n" + _tables(sure.tables))
    yield _fold("Benchmarks", _tables(benchmark_tables(index)))
    yield _fold("By domain", _table(view.domain_table(index)))
    yield _fold("By position in the context", _table(view.position_table(index)))
    yield _fold("Draft acceptance", _tables(view.acceptance_tables(index)))
    yield _fold("Router", _tables(view.router_tables(index)))
    yield _fold("Logits, all statistics", _table(view.logits_table(index)))
    yield _fold("Weights", _table(view.weights_table(index)))
    if results.missing:
        rows = [[one.name, one.lane, one.slice, one.why] for one in results.missing[: None if long else SHOWN_MISSING]]
        yield _fold(f"Not measured ({len(results.missing)})", grid(["measurement", "lane", "slice", "why"], rows))
    if long:
        yield from _long(index, found)
    yield _footer(results)


def _long(index: view.Index, found: list[Group]) -> Iterable[str]:
    """What only a step summary has room for."""
    rows = [[WORDS[row.status], row.lane, gate_line(row), row.decided] for one in found for row in one.bad]
    for start in range(0, len(rows), 200):
        body = grid(["result", "lane", "check", "decided by"], rows[start : start + 200])
        yield _fold(f"Every check that did not pass ({start + 1} to {min(start + 200, len(rows))})", body)
    for table in view.layer_tables(index):
        yield _fold(table.title, _table(table))


def _gate(group: Group) -> str:
    more = f" (and {len(group.bad) - 1} more of {len(group.rows)} slices)" if len(group.bad) > 1 else ""
    return f"{group.lane}: {group.what}: {group.worst.reason}{more}"


def _checks(found: list[Group]) -> str:
    rows = [
        [
            WORDS[one.status], one.lane, one.what, f"{one.measured} {one.interval}".strip(), one.worst.bound or "–",
            _margin(one),
        ]
        for one in found
        if one.status != "not applicable"
    ]  # fmt: skip
    idle = [f"{one.lane}: {one.what}" for one in found if one.status == "not applicable"]
    note = f"\n{len(idle)} rows do not apply: {escape('; '.join(idle))}.\n" if idle else ""
    return grid(["result", "lane", "check", "measured", "allowed", "margin"], rows) + note


def _margin(group: Group) -> str:
    """The smallest of the group's, marked where it is thin."""
    return show_margin(group.thinnest.margin if group.thinnest else None) + (" (thin)" if group.thin else "")


def _changes(against: Against) -> str:
    moved = against.moved
    head = f"### Against the baseline\n\n{against.counted} (changed: intervals do not overlap).\n\n"
    head += "".join(f"- Not alike, as allowed: {escape(str(one))}\n" for one in against.unlike[:12])
    rows = [
        [
            one.kind,
            one.lane,
            f"{label(one.name)}, {show_slice(one.slice)}",
            show_value(one.before.value if one.before else None, one.unit),
            show_value(one.after.value if one.after else None, one.unit),
        ]
        for one in moved[:SHOWN_CHANGES]
    ]
    more = f"\n{len(moved) - SHOWN_CHANGES} more in report.html.\n" if len(moved) > SHOWN_CHANGES else ""
    if against.worse:
        more += f"\nIf this is intended, accept the new figures: <code>{escape(against.accept)}</code>\n"
    return head + (grid(["change", "lane", "measurement", "baseline", "now"], rows) if rows else "") + more + "\n"


def _footer(results: Results) -> str:
    lanes = "; ".join(f"{one.name} = {one.path}" for one in results.lanes)
    command = str(results.tool.get("command", ""))
    lines = [f"{escape(lanes)}", f"qconvert {escape(str(results.tool.get('version', '')))}, {escape(results.created)}"]
    if command:
        lines.append(f"<code>{escape(command)}</code>")
    return "\n" + "  \n".join(lines) + "\n"


def _table(table: view.Table) -> str:
    rows = [[f"{cell.text} {cell.interval}".strip() for cell in row] for row in table.rows]
    return grid(table.columns, rows) if rows else ""


def _tables(tables: Iterable[view.Table]) -> str:
    """Several tables under their titles."""
    return "\n".join(f"**{escape(one.title)}**\n\n{_table(one)}" for one in tables if one.rows)


def grid(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table; every cell is escaped."""
    names = [escape(one) for one in head]
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(escape(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _fold(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>\n\n{body}\n</details>\n\n" if body else ""


def escape(text: str) -> str:
    """Text that Markdown and HTML show as it is."""
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKS.sub(r"\\\1", plain).replace("@", "@\u200b")

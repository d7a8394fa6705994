"""report.md: for a pull-request comment or a step summary, verdict first.

GitHub takes 65,536 characters in a comment, so the text is built from blocks in order of importance, and the first
block that no longer fits ends it with a notice. (A step summary takes 1 MiB; what fits the one fits the other.) Details
are folded. The first line is a hidden marker by which a bot finds its own comment and edits it in place.

Names come from files and users: pipes, backticks, line ends and angle brackets are made harmless in every cell, and `@`
cannot mention anybody. Left out: plots, which a comment cannot hold; they are in report.html.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from qconvert_evals.results import Results
from qconvert_reports import view
from qconvert_reports.baseline import Against
from qconvert_reports.labels import label, show_slice, show_value
from qconvert_reports.verdict_view import WORDS, Group, groups, headline

COMMENT_LIMIT = 65_536
NOTICE = "\n_Cut here: the rest does not fit a comment. Everything is in report.html and results.json._\n"
MARKER = "<!-- qconvert drift report -->"
_MARKS = re.compile(r"([\\`*_\[\]|~#])")


def render_markdown(results: Results, found: Against | None = None, limit: int = COMMENT_LIMIT) -> str:
    """The report in at most `limit` characters."""
    text, room = "", limit - len(NOTICE)
    for block in _blocks(results, found):
        if len(text) + len(block) > room:
            return text + NOTICE
        text += block
    return text


def _blocks(results: Results, against: Against | None) -> Iterable[str]:
    """Pieces in order of importance; each can stand at the end."""
    index = view.Index(results)
    found = groups(results)
    bad = [one for one in found if one.status in ("fail", "inconclusive")]
    status = results.verdict.status if results.verdict else "inconclusive"
    words = headline(results.verdict, results) if results.verdict else "this record has not been judged."
    yield f"{MARKER}\n## {WORDS[status]}: {escape(words)}\n\n"
    yield from (f"- **{WORDS[one.status]}** {escape(_gate(one))}\n" for one in bad)
    yield "\n" if bad else ""
    yield _table(view.summary(index)) + "\n"
    if against is not None:
        yield _changes(against)
    yield _fold("All checks", _checks(found))
    yield _fold("By domain", _table(view.domain_table(index)))
    yield _fold("Draft acceptance", _tables(view.acceptance_tables(index)))
    yield _fold("Router", _tables(view.router_tables(index)))
    yield _fold("Logits, all statistics", _table(view.logits_table(index)))
    yield _fold("Weights", _table(view.weights_table(index)))
    if results.missing:
        rows = [[one.name, one.lane, one.slice, one.why] for one in results.missing]
        yield _fold(f"Not measured ({len(rows)})", grid(["measurement", "lane", "slice", "why"], rows))
    yield _footer(results)


def _gate(group: Group) -> str:
    more = f" (and {len(group.bad) - 1} more of {len(group.rows)} slices)" if len(group.bad) > 1 else ""
    return f"{group.lane}: {group.what}: {group.worst.reason}{more}"


def _checks(found: list[Group]) -> str:
    rows = [
        [WORDS[one.status], one.lane, one.what, f"{one.measured} {one.interval}".strip(), one.worst.bound or "–"]
        for one in found
    ]
    return grid(["result", "lane", "check", "measured", "allowed"], rows)


def _changes(against: Against) -> str:
    moved, total = against.moved, len(against.changes)
    head = f"### Against the baseline\n\n{len(moved)} of {total} numbers changed (intervals do not overlap).\n\n"
    head += "".join(f"- Not alike, as allowed: {escape(str(one))}\n" for one in against.unlike[:12])
    rows = [
        [
            one.kind,
            one.lane,
            f"{label(one.name)}, {show_slice(one.slice)}",
            show_value(one.before.value if one.before else None, one.unit),
            show_value(one.after.value if one.after else None, one.unit),
        ]
        for one in moved[:30]
    ]
    more = f"\n{len(moved) - 30} more in report.html.\n" if len(moved) > 30 else ""
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

"""A history as Markdown: the runs, then a line for each measurement and lane with the newest runs as columns.

As short as a comment must be: the last runs only, what is read first in front, the rest folded, cut with a notice.
"""

from __future__ import annotations

from qconvert_evals.results import Measurement
from qconvert_reports.history import FIRST, History, Line, Run
from qconvert_reports.labels import label, show_slice, show_value
from qconvert_reports.markdown import COMMENT_LIMIT, NOTICE, escape, grid
from qconvert_reports.verdict_view import WORDS

COLUMNS = 8
RUNS = 30


def render_history(history: History, limit: int = COMMENT_LIMIT) -> str:
    """At most `limit` characters."""
    text, room = "", limit - len(NOTICE)
    for block in _blocks(history):
        if len(text) + len(block) > room:
            return text + NOTICE
        text += block
    return text


def _blocks(history: History) -> list[str]:
    newest = [(number, run) for number, run in enumerate(history.runs, 1)][-RUNS:]
    rows = [
        [str(number), run.day, WORDS.get(run.status, run.status), run.path, run.why or "yes"] for number, run in newest
    ]
    more = f"{len(history.runs) - RUNS} older ones are left out.\n\n" if len(history.runs) > RUNS else ""
    head = f"## History of {escape(history.folder)}\n\n{len(history.runs)} runs, the newest last. {more}\n"
    first = [line for line in history.lines if (line.name, line.slice) in FIRST]
    rest = [line for line in history.lines if (line.name, line.slice) not in FIRST]
    blocks = [head + grid(["run", "made", "verdict", "file", "like the newest"], rows) + "\n"]
    blocks.append(_table(history, first) + "\n")
    for start in range(0, len(rest), 40):
        body = _table(history, rest[start : start + 40])
        blocks.append(f"<details><summary>More ({start + 1} to {start + 40})</summary>\n\n{body}\n</details>\n\n")
    return blocks


def _table(history: History, lines: list[Line]) -> str:
    shown = [(number, run) for number, run in enumerate(history.runs, 1)][-COLUMNS:]
    heads = ["measurement", "lane", *(f"run {number}{'*' * bool(run.why)}" for number, run in shown)]
    rows = [
        [f"{label(line.name)}{_at(line)}", lane, *_cells(shown, points, line.unit)]
        for line in lines
        for lane, points in line.lanes.items()
    ]
    note = "\n\\* not comparable with the newest run.\n" if any(run.why for _, run in shown) else ""
    return grid(heads, rows) + note if rows else ""


def _cells(shown: list[tuple[int, Run]], points: list[Measurement | None], unit: str) -> list[str]:
    return [show_value(m.value if m else None, unit) for m in (points[number - 1] for number, _ in shown)]


def _at(line: Line) -> str:
    return "" if line.slice == "all" else f", {show_slice(line.slice)}"

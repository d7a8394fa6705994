"""What compare, report and demo say on a terminal: one line a lane, what did not pass, the verdict.

Only the things to print are made here; `cli` prints them. Names reach rich as Text, so that brackets in them are not
markup.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table
from rich.text import Text

from qconvert_evals.results import Results
from qconvert_reports import view
from qconvert_reports.baseline import Against
from qconvert_reports.benchmarks_view import benchmark_lines
from qconvert_reports.certainty import certainty, text_lines
from qconvert_reports.labels import show_value
from qconvert_reports.recorded import LARGE
from qconvert_reports.verdict_view import WORDS, groups, headline, margin_line

COLOURS = {
    "pass": "green",
    "improved": "green",
    "fail": "red",
    "inconclusive": "yellow",
    "not applicable": "bright_black",
}
SHOWN = 12  # gate lines before the rest is only counted


def summary_table(results: Results) -> Table:
    """The lanes at a glance; intervals stand in the report."""
    plain = view.summary(view.Index(results))
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for number, head in enumerate(plain.columns):
        table.add_column(Text(head), justify="left" if number == 0 else "right", no_wrap=number == 0)
    for row in plain.rows:
        table.add_row(*(Text(cell.text) for cell in row))
    return table


def task_lines(results: Results) -> Iterator[Text]:
    """One line a benchmark and candidate."""
    yield from (Text(line) for line in benchmark_lines(view.Index(results)))


def verdict_lines(results: Results) -> Iterator[Text]:
    """Gate lines of what did not pass, then the verdict, and how near the nearest bound was."""
    bad = [one for one in groups(results) if one.status in ("fail", "inconclusive")]
    for group in bad[:SHOWN]:
        more = f" (and {len(group.bad) - 1} more of {len(group.rows)} slices)" if len(group.bad) > 1 else ""
        yield Text(group.line + more, style=COLOURS[group.status])
    if len(bad) > SHOWN:
        yield Text(f"and {len(bad) - SHOWN} more rules")
    if results.verdict is not None:
        status = results.verdict.status
        words = Text(f"{WORDS[status].upper()} ", style=f"bold {COLOURS[status]}")
        yield words + Text(headline(results.verdict, results), style="default")
        if line := margin_line(results.verdict):
            yield Text(line)
        yield from (Text(line, style="yellow") for line in text_lines(results))
        if certainty(results).provisional:
            yield Text(f"the budget is provisional: no pair of {LARGE / 1e9:.0f} billion parameters is on record yet")


def baseline_lines(against: Against) -> Iterator[Text]:
    """How many numbers changed, the worst of them, what was unlike, and how to accept the new figures."""
    yield from (Text(f"not alike, as allowed: {one}", style="yellow") for one in against.unlike[:SHOWN])
    yield Text(f"{against.counted} (against {against.path})")
    for one in against.worse[:SHOWN]:
        before, after = (show_value(m.value if m else None, one.unit) for m in (one.before, one.after))
        yield Text(f"{one.kind.upper()} {one.lane} {one.name} ({one.slice}): {before} -> {after}", style="yellow")
    if len(against.worse) > SHOWN:
        yield Text(f"and {len(against.worse) - SHOWN} more")
    if against.worse:
        yield Text(f"if this is intended, accept the new figures: {against.accept}")

"""A history as one HTML page: a small plot for each measurement, runs in order, an unjoined hollow point where a run
speaks about another base model, other tokens or other settings."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from matplotlib.ticker import FuncFormatter

from qconvert_evals.results import Measurement
from qconvert_reports.history import FIRST, History, Line
from qconvert_reports.labels import FAMILIES, family, label, show_slice, show_value
from qconvert_reports.page import fill_page
from qconvert_reports.plots import LANE_COLOURS, Plot, draw_plot
from qconvert_reports.verdict_view import WORDS


def render_page(history: History) -> str:
    """The page as text."""
    lanes = list(dict.fromkeys(lane for line in history.lines for lane in line.lanes))
    colours = {lane: LANE_COLOURS[number % len(LANE_COLOURS)] for number, lane in enumerate(lanes)}
    first = [line for line in history.lines if (line.name, line.slice) in FIRST]
    rest: dict[str, list[Line]] = {}
    for line in history.lines:
        if line not in first:
            rest.setdefault(FAMILIES.get(family(line.name), family(line.name)), []).append(line)
    return fill_page(
        "history.html",
        {"value": show_value, "label": label, "slice": show_slice},
        history=history,
        words=WORDS,
        first=[plot(history, line, colours) for line in first],
        families={name: [plot(history, line, colours) for line in lines] for name, lines in rest.items()},
        lines=first,
    )


def plot(history: History, line: Line, colours: dict[str, str]) -> Plot:
    """One measurement over the runs, a colour a lane."""

    def draw(axes: Any) -> None:
        for lane, points in line.lanes.items():
            _draw_lane(axes, history, points, colours[lane], lane)
        runs = len(history.runs)
        step = max(1, (runs - 1) // 8 + 1)
        places = range(0, runs, step)
        axes.set_xticks(list(places), [str(place + 1) for place in places])
        axes.set_xlim(-0.5, runs - 0.5)
        axes.set_xlabel("run")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: show_value(value, line.unit)))

    where = "" if line.slice == "all" else f", {show_slice(line.slice)}"
    return draw_plot(f"{label(line.name)}{where}", "", draw, len(line.lanes))


def _draw_lane(axes: Any, history: History, points: list[Measurement | None], colour: str, lane: str) -> None:
    """A line through each stretch of comparable neighbours; hollow where a run is not like the newest."""
    newest = history.runs[-1].group
    found = [(place, run.group, m) for place, (run, m) in enumerate(zip(history.runs, points, strict=True)) if m]
    axes.plot([], [], "o-", color=colour, markersize=4, linewidth=1.5, label=lane)
    for group in dict.fromkeys(group for _, group, _ in found):
        mine = [(place, m) for place, one, m in found if one == group]
        places, values = [place for place, _ in mine], [m.value or 0.0 for _, m in mine]
        if group == newest:
            axes.plot(places, values, "-", color=colour, linewidth=1.5)
        else:
            for _, stretch in groupby(enumerate(places), lambda one: one[1] - one[0]):  # neighbours of one kind
                inside = [number for number, _ in stretch]
                axes.plot([places[i] for i in inside], [values[i] for i in inside], ":", color=colour, linewidth=1)
        low = [
            value - (m.ci_low if m.ci_low is not None else value) for value, (_, m) in zip(values, mine, strict=True)
        ]
        high = [
            (m.ci_high if m.ci_high is not None else value) - value for value, (_, m) in zip(values, mine, strict=True)
        ]
        error = [[max(0.0, one) for one in side] for side in (low, high)]
        face = colour if group == newest else "white"
        style = {"fmt": "o", "markersize": 4, "elinewidth": 1, "capsize": 2}
        axes.errorbar(places, values, yerr=error, color=colour, markerfacecolor=face, **style)

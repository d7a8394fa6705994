"""Plots along the context: each quality measurement by how much text came before (slices `at=FIRST-LAST`)."""

from __future__ import annotations

from typing import Any

from matplotlib.ticker import FuncFormatter

from qconvert_evals.results import Measurement, Results
from qconvert_reports.labels import conditions, label, show_value
from qconvert_reports.plots import Plot, draw_line, draw_plot, lane_colour

# Measurement and the condition that its slices carry beside the position.
ALONG = (
    ("logits.kl_mean", ""),
    ("logits.top1_agreement", ""),
    ("logits.ppl_ratio", ""),
    ("mtp.acceptance_greedy", "1"),
)


def along_context(results: Results) -> list[Plot]:
    """A panel a measurement; none where all text is shorter than the first stretch."""
    plots = []
    for name, step in ALONG:
        lines = _lines(results, name, step)
        stretches = list(dict.fromkeys(at for points in lines.values() for at in points))
        if len(stretches) < 2:
            continue

        def draw(axes: Any, lines: dict[str, dict[str, Measurement]] = lines, places: list[str] = stretches) -> None:
            unit = ""
            for lane, points in lines.items():
                at = [places.index(one) for one in points]
                draw_line(axes, at, list(points.values()), lane, lane_colour(results, lane))
                unit = next(iter(points.values())).unit
            axes.set_xticks(range(len(places)), [one.partition("-")[0] for one in places])
            axes.set_xlabel("stretch of the context, by its first token")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: show_value(value, unit)))

        words = label(name) + (f", draft step {step}" if step else "")
        plots.append(draw_plot(words, "", draw, len(lines)))
    return plots


def _lines(results: Results, name: str, step: str) -> dict[str, dict[str, Measurement]]:
    """Lane -> stretch -> measurement, in the record's order, which is that of the context."""
    wanted = {"at", "position"} if step else {"at"}
    lines: dict[str, dict[str, Measurement]] = {}
    for one in results.measurements:
        parts = conditions(one.slice)
        if one.name == name and one.value is not None and parts.keys() == wanted and parts.get("position", "") == step:
            lines.setdefault(one.lane, {})[parts["at"]] = one
    return lines

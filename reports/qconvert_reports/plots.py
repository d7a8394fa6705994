"""The plots of a report, as SVG text drawn by matplotlib from the record alone.

One panel a figure and no figure wider than a phone can show; the page lays them out in a grid. The same record gives
the same bytes (no date, fixed ids), so a report can be diffed. Lane names reach the SVG as text which matplotlib
escapes, and the page embeds each plot as an image, in which no script can run.

Left out: bars for agreement rates. Their zero says nothing, while the distance from 1 does, so the axes start where the
data is.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from qconvert_evals.results import Measurement, Results
from qconvert_reports.labels import conditions

BASE_COLOUR, NOISE_COLOURS = "#3b4450", ("#9aa3ad", "#bfa58a", "#b7a3bd")
LANE_COLOURS = ("#2b6cb0", "#c05f1f", "#2f855a", "#805ad5", "#b83280", "#718096")
FROM = "A noise lane diverges from the lane that it is named after."
TINY = 1e-8  # nats; smaller divergences are told apart by no decision
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "qconvert",
    "font.family": "sans-serif",
    "font.sans-serif": ["Inter", "Segoe UI", "Helvetica Neue", "Arial", "Liberation Sans", "DejaVu Sans", "sans-serif"],
    "font.size": 9.0,
    "axes.edgecolor": "#c3c9d0",
    "axes.labelcolor": "#4a5560",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e9ecf0",
    "grid.linewidth": 0.8,
    "xtick.color": "#6b7680",
    "ytick.color": "#6b7680",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "text.color": "#1f2933",
    "text.parse_math": False,  # a `$` in a lane's name is a dollar, not mathematics
}


_UNDRAWABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # SVG is XML, which cannot hold these


@dataclass(frozen=True)
class Plot:
    """One picture: SVG, what it says in words for those who cannot see it, and its caption."""

    title: str
    caption: str
    svg: str


def lane_colour(results: Results, lane: str) -> str:
    """A lane keeps its colour through the whole report."""
    roles = {one.name: one.role for one in results.lanes}
    if roles.get(lane) == "base":
        return BASE_COLOUR
    if roles.get(lane) == "noise":
        noise = [one.name for one in results.lanes if one.role == "noise"]
        return NOISE_COLOURS[noise.index(lane) % len(NOISE_COLOURS)]
    names = [one.name for one in results.lanes if one.role == "candidate"]
    return LANE_COLOURS[names.index(lane) % len(LANE_COLOURS)] if lane in names else LANE_COLOURS[-1]


def kl_histogram(results: Results) -> list[Plot]:
    """How the per-token divergence is distributed, one outline a lane."""
    histograms: dict[str, Any] = results.figures.get("kl_histogram") or {}
    shown = {lane: _bars(one) for lane, one in histograms.items() if sum(one["counts"]) > 0}
    if not shown:
        return []

    def draw(axes: Any) -> None:
        for lane, (edges, shares) in shown.items():
            colour = lane_colour(results, lane)
            axes.stairs(shares, edges, fill=True, alpha=0.16, color=colour)
            axes.stairs(shares, edges, color=colour, linewidth=1.4, label=lane)
        bars = [bar for edges, shares in shown.values() for bar in zip(edges, shares, strict=False)]
        full = [edge for edge, share in bars if share]
        axes.set_xscale("log")
        axes.set_xlim(min(full), 2 * max(full))
        axes.xaxis.set_major_formatter(FuncFormatter(_power))
        axes.set_xlabel("KL divergence from BF16 per token (nats, logarithmic)")
        axes.set_ylabel("share of tokens")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))

    caption = f"Over the full vocabulary; the first bar holds everything below {_power(TINY)}. {FROM}"
    return [draw_plot("KL divergence, token by token", caption, draw, len(shown))]


def _bars(histogram: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Edges and shares of tokens, all bins below TINY in one: so little is rounding, and zero has no logarithm."""
    edges, counts = histogram["edges"], histogram["counts"]
    first = next((number for number, edge in enumerate(edges[:-1]) if edge >= TINY), len(counts) - 1)
    total = sum(counts)
    shares = [sum(counts[:first]) / total, *(count / total for count in counts[first:])]
    return [edges[first] / 1.8, *edges[first:]], shares


def kl_by_position(results: Results) -> list[Plot]:
    """Mean divergence along the sequence: errors of a recurrent state pile up, or do not."""
    lines: dict[str, Any] = results.figures.get("position_kl") or {}
    shown = {lane: rows for lane, rows in lines.items() if len(rows) > 1}
    if not shown:
        return []

    def draw(axes: Any) -> None:
        for lane, rows in shown.items():
            places = [
                math.sqrt((row["first"] + 1) * (row["last"] + 1)) for row in rows
            ]  # middle of the bucket, on a log axis
            means = [max(row["kl_mean"], 1e-12) for row in rows]
            axes.plot(places, means, "o-", markersize=3.2, linewidth=1.6, color=lane_colour(results, lane), label=lane)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.yaxis.set_major_formatter(FuncFormatter(_power))
        axes.set_xlabel("position in the sequence (logarithmic)")
        axes.set_ylabel("mean KL (nats)")

    caption = f"Mean divergence by how much text came before. {FROM}"
    return [draw_plot("KL divergence along the text", caption, draw, len(shown))]


def _power(x: float, _: object = None) -> str:
    """1e-05 -> "1e-5"; matplotlib's own powers need its mathematics, which is off because names may hold a `$`."""
    return f"{x:.0e}".replace("e-0", "e-").replace("e+00", "")


def _filled(histograms: dict[str, Any]) -> tuple[float, float]:
    """Edges of the bins that hold anything, over all lanes."""
    full = [
        (low, high)
        for one in histograms.values()
        for low, high, count in zip(one["edges"], one["edges"][1:], one["counts"], strict=False)
        if count
    ]
    floor = min(one["edges"][1] for one in histograms.values()) / 2
    return max(min(low for low, _ in full), floor), max(high for _, high in full)


def by_layer(results: Results, name: str, title: str, caption: str) -> list[Plot]:
    """One measurement over the layers, a panel for each feed; the MTP head, which has no number, stands behind them."""
    plots = []
    for feed, words in (("local", "BF16 input"), ("free", "own input")):
        lines = _layer_lines(results, name, feed)
        if not lines:
            continue

        def draw(axes: Any, lines: dict[str, dict[str, Measurement]] = lines) -> None:
            places = _places(lines)
            for lane, points in lines.items():
                numbered = [layer for layer in points if layer.isdecimal()]
                colour = lane_colour(results, lane)
                draw_line(axes, [places[one] for one in numbered], [points[one] for one in numbered], lane, colour)
                beside = [layer for layer in points if not layer.isdecimal()]
                _points(axes, [places[one] for one in beside], [points[one] for one in beside], None, colour)
            step = max(1, math.ceil(len(places) / 9))
            ticks = [layer for layer in places if not layer.isdecimal() or int(layer) % step == 0]
            axes.set_xticks([places[layer] for layer in ticks], [f"layer {ticks[0]}", *ticks[1:]])
            if next(iter(next(iter(lines.values())).values())).unit == "fraction":
                axes.yaxis.set_major_formatter(PercentFormatter(1.0))

        plots.append(draw_plot(f"{title}: {words}", caption, draw, len(lines)))
    return plots


def _layer_lines(results: Results, name: str, feed: str) -> dict[str, dict[str, Measurement]]:
    """Lane -> layer -> measurement."""
    lines: dict[str, dict[str, Measurement]] = {}
    for one in results.measurements:
        parts = conditions(one.slice)
        if one.name == name and one.value is not None and parts.keys() == {"layer", "feed"} and parts["feed"] == feed:
            lines.setdefault(one.lane, {})[parts["layer"]] = one
    return lines


def _places(lines: dict[str, dict[str, Measurement]]) -> dict[str, int]:
    """Where each layer stands on the axis: numbered ones at their number, in order, the others behind."""
    layers = dict.fromkeys(layer for points in lines.values() for layer in points)
    places = {layer: int(layer) for layer in sorted((one for one in layers if one.isdecimal()), key=int)}
    after = max(places.values(), default=-1) + 1
    return places | {layer: after + number for number, layer in enumerate(one for one in layers if not one.isdecimal())}


def acceptance(results: Results) -> list[Plot]:
    """Greedy draft acceptance by draft step: all text, then each domain."""
    name = "mtp.acceptance_greedy"
    domains: dict[str, dict[str, list[tuple[int, Measurement]]]] = {}
    for one in results.measurements:
        parts = conditions(one.slice)
        if (
            one.name == name
            and one.value is not None
            and "position" in parts
            and parts.keys() <= {"position", "domain"}
        ):
            lines = domains.setdefault(parts.get("domain", ""), {})
            lines.setdefault(one.lane, []).append((int(parts["position"]), one))
    steps = {step for lines in domains.values() for points in lines.values() for step, _ in points}
    shared = _limits([one for lines in domains.values() for points in lines.values() for _, one in points])
    plots = []
    for domain, lines in domains.items():

        def draw(axes: Any, lines: dict[str, list[tuple[int, Measurement]]] = lines) -> None:
            for number, (lane, points) in enumerate(lines.items()):
                shift = 0.09 * (number - (len(lines) - 1) / 2)  # side by side, so that the intervals can be told apart
                steps_shifted = [step + shift for step, _ in points]
                _points(axes, steps_shifted, [one for _, one in points], lane, lane_colour(results, lane))
            axes.set_xticks(sorted(steps))
            axes.set_xlim(min(steps) - 0.4, max(steps) + 0.4)
            axes.set_ylim(*shared)
            axes.set_xlabel("draft step")
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))

        title = f"Draft acceptance, teacher-forced, {domain or 'all text'}"
        plots.append(draw_plot(title, "", draw, len(lines)))
    return plots


def _limits(points: Sequence[Measurement]) -> tuple[float, float]:
    """One vertical axis for all panels, so that domains can be compared by eye."""
    values = [one.value for one in points if one.value is not None]
    values += [one.ci_low for one in points if one.ci_low is not None]
    values += [one.ci_high for one in points if one.ci_high is not None]
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.06 * (high - low) + 0.005
    return max(0.0, low - margin), min(1.0, high + margin)


def draw_line(axes: Any, places: Sequence[float], points: Sequence[Measurement], lane: str, colour: str) -> None:
    """A line through the values, their intervals as a band."""
    values = [one.value for one in points]
    marker = {"marker": "o", "markersize": 3.2} if len(points) <= 12 else {}
    axes.plot(places, values, color=colour, linewidth=1.6, label=lane, **marker)
    if all(one.ci_low is not None and one.ci_high is not None for one in points):
        lows, highs = [one.ci_low for one in points], [one.ci_high for one in points]
        axes.fill_between(places, lows, highs, color=colour, alpha=0.14, linewidth=0)


def _points(axes: Any, places: Sequence[float], points: Sequence[Measurement], lane: str | None, colour: str) -> None:
    values = [one.value or 0.0 for one in points]
    below = [max(0.0, (one.value or 0.0) - (one.ci_low or one.value or 0.0)) for one in points]
    above = [max(0.0, (one.ci_high or one.value or 0.0) - (one.value or 0.0)) for one in points]
    style = {"fmt": "o", "markersize": 4.6, "elinewidth": 1.4, "capsize": 2.4}
    axes.errorbar(places, values, yerr=[below, above], color=colour, label=lane, **style)


def draw_plot(title: str, caption: str, draw: Callable[[Any], None], lines: int) -> Plot:
    """One panel with its legend above; `draw` fills the axes."""
    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type, unused-ignore]
        figure = Figure(figsize=(4.9, 2.7), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        draw(axes)
        handles, names = axes.get_legend_handles_labels()
        shown = [_UNDRAWABLE.sub("?", name) for name in names]
        figure.legend(
            handles, shown, loc="outside upper left", ncols=min(lines, 4), handlelength=1.4, columnspacing=1.4
        )
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return Plot(title, caption, out.getvalue())

"""latency.html: time and memory by length of context, decoding with the MTP head beside decoding without.

    without the head    1 / decode                                   tokens per second
    with it             speed-up / decode                            (see `qconvert_evals.latency` for the formula)

Both are of the reference on one machine: read ratios between lanes and lengths, not seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.ticker import FuncFormatter

from qconvert_evals.results import Measurement
from qconvert_reports.labels import conditions, show_interval, show_value
from qconvert_reports.page import fill_page
from qconvert_reports.plots import LANE_COLOURS, Plot, draw_plot

Points = list[tuple[int, float]]  # (length of context, value)


class Timed:
    """Latency measurements by lane and length."""

    def __init__(self, measurements: Sequence[Measurement]) -> None:
        self.by_key: dict[tuple[str, str, int], Measurement] = {}
        for one in measurements:
            length = conditions(one.slice).get("context", "")
            if length.isdecimal():
                self.by_key[one.name.removeprefix("latency."), one.lane, int(length)] = one
        self.lanes = list(dict.fromkeys(lane for _, lane, _ in self.by_key))
        self.lengths = sorted({length for _, _, length in self.by_key})

    def value(self, name: str, lane: str, length: int) -> float | None:
        """None where it was not measured."""
        one = self.by_key.get((name, lane, length))
        return None if one is None else one.value

    def points(self, name: str, lane: str) -> Points:
        """One measurement over the lengths."""
        found = ((length, self.value(name, lane, length)) for length in self.lengths)
        return [(length, value) for length, value in found if value is not None]

    def decoding(self, lane: str, with_head: bool) -> Points:
        """Tokens per second of decoding."""
        gains = dict(self.points("mtp_speed_up", lane)) if with_head else {}
        pairs = self.points("decode", lane)
        return [(n, (gains[n] if with_head else 1.0) / seconds) for n, seconds in pairs if not with_head or n in gains]


def render_latency(measurements: Sequence[Measurement], about: dict[str, str]) -> str:
    """The page as text; `about` is shown under the plots."""
    timed = Timed(measurements)
    filters = {"value": show_value, "interval": show_interval}
    return fill_page("latency.html", filters, timed=timed, plots=plots(timed), about=about)


def plots(timed: Timed) -> list[Plot]:
    """Prefill, decoding with and without the head, what the head brings, and the cache."""
    head = any(timed.points("mtp_speed_up", lane) for lane in timed.lanes)
    prefill = {lane: timed.points("prefill", lane) for lane in timed.lanes}
    drawn = [_panel(timed, "Prefill", "seconds", prefill, {})]
    without = {lane: timed.decoding(lane, False) for lane in timed.lanes}
    with_head = {lane: timed.decoding(lane, True) for lane in timed.lanes} if head else {}
    words = "Decoding, MTP off (solid) and on (dashed)" if head else "Decoding"
    drawn.append(_panel(timed, words, "tokens per second", without, with_head))
    if head:
        gains = {lane: timed.points("mtp_speed_up", lane) for lane in timed.lanes}
        drawn.append(_panel(timed, "Speed-up by MTP", "times", gains, {}, one=True))
        steps = {lane: timed.points("tokens_per_step", lane) for lane in timed.lanes}
        drawn.append(_panel(timed, "Tokens per verification step", "tokens", steps, {}))
    cache = {lane: timed.points("cache_bytes", lane) for lane in timed.lanes}
    drawn.append(_panel(timed, "Cache", "", cache, {}, shown=lambda value: show_value(value, "bytes")))
    return drawn


def _panel(
    timed: Timed,
    title: str,
    unit: str,
    solid: dict[str, Points],
    dashed: dict[str, Points],
    one: bool = False,
    shown: Callable[[float], str] = "{:g}".format,
) -> Plot:
    def draw(axes: Any) -> None:
        for number, lane in enumerate(timed.lanes):
            colour = LANE_COLOURS[number % len(LANE_COLOURS)]
            axes.plot(*_columns(solid[lane]), "o-", markersize=4, linewidth=1.6, color=colour, label=lane)
            if dashed.get(lane):
                axes.plot(*_columns(dashed[lane]), "s--", markersize=4, linewidth=1.4, color=colour)
        if one:
            axes.axhline(1, color="#9aa3ad", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_xticks(timed.lengths, [f"{length:,}" for length in timed.lengths])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.set_xlabel("tokens of context")
        axes.set_ylabel(unit)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value)))

    return draw_plot(title, "", draw, len(timed.lanes))


def _columns(points: Points) -> tuple[list[int], list[float]]:
    return [length for length, _ in points], [value for _, value in points]

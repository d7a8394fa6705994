"""A record of kernel timings as a table and a roofline: what each kernel reached of what the machine can do.

    share of copy   bytes that must be moved / time / measured copy bandwidth
    TFLOP/s         useful operations / time
    beside          a peer's median / ours: 2 is twice as fast as the peer

The roofline has operations per byte on one axis and operations per second on the other; no kernel can lie above the
lines, which are the ceilings measured in the same run.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qconvert.errors import UserError
from qconvert_reports.plots import LANE_COLOURS, Plot, draw_plot

if TYPE_CHECKING:
    from qconvert_kernels.bench.measure import Peer, Row
    from qconvert_kernels.bench.record import Run
    from qconvert_kernels.bench.targets import Outcome

COLUMNS = ("kernel", "shape", "tokens", "experts", "median", "p10 to p90", "share of copy", "TFLOP/s", "beside")
FILES = ("bench.json", "bench.md", "roofline.svg")


def table(run: Run) -> str:
    """Header, rows, targets: as text, which is Markdown as well."""
    from qconvert_kernels.bench.targets import judge

    limits, device = run.ceilings, run.device
    fp8 = f"{limits.fp8 / 1e12:.0f} TFLOP/s" if limits.fp8 else f"none ({limits.why_no_fp8})"
    head = [
        f"# Kernels on {device['name']}",
        "",
        f"{run.created}; " + ", ".join(f"{name} {version}" for name, version in run.versions.items()),
        "",
        f"Ceilings in the same run: copy {limits.copy / 1e12:.2f} TB/s, "
        f"bf16 {limits.bf16 / 1e12:.0f} TFLOP/s, fp8 {fp8}.",
        "",
    ]
    rows = _aligned([COLUMNS, *(_cells(row, run) for row in run.rows)])
    targets = _aligned([("target", "floor", "aim", "worst", "verdict", "at"), *map(_target, judge(run.rows, limits))])
    return "\n".join([*head, *rows, "", "## Targets", "", *targets]) + "\n"


def roofline(run: Run) -> Plot:
    """Every row as a point below the roofs."""
    drawn = [(row, row.flops / row.bytes, row.flops_per_s) for row in run.rows if row.flops and row.flops_per_s]
    limits = run.ceilings
    roofs = [("bf16", limits.bf16), *([("fp8", limits.fp8)] if limits.fp8 else [])]
    kernels = list(dict.fromkeys(row.kernel for row, _, _ in drawn))

    def draw(axes: Any) -> None:
        for number, kernel in enumerate(kernels):
            points = [(x, y) for row, x, y in drawn if row.kernel == kernel]
            colour = LANE_COLOURS[number % len(LANE_COLOURS)]
            axes.scatter(*zip(*points, strict=True), s=11, color=colour, label=kernel, alpha=0.8)
        low, high = min(x for _, x, _ in drawn) / 2, max(x for _, x, _ in drawn) * 2
        for name, roof in roofs:
            knee = roof / limits.copy
            axes.plot([low, knee, max(high, knee)], [low * limits.copy, roof, roof], color="#3b4450", linewidth=1.0)
            axes.annotate(name, (max(high, knee), roof), ha="right", va="bottom", fontsize=8)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("operations per byte that must be moved")
        axes.set_ylabel("operations per second")

    caption = "The slope is the measured copy bandwidth, the flat lines are torch's own products of large matrices."
    if not drawn:
        raise UserError("the record has no timed product to draw", expected="rows with times and operations")
    return draw_plot("Roofline", caption, draw, len(kernels))


def write_bench(run: Run, folder: Path) -> None:
    """All three files, together or not at all; an existing folder is replaced only if it is one of these."""
    from qconvert_kernels.bench.record import to_json

    if folder.exists() and any(one.name not in FILES for one in folder.iterdir()):
        raise UserError("the folder holds other files", where=str(folder), fix="name another folder with --report")
    contents = {"bench.json": to_json(run), "bench.md": table(run), "roofline.svg": roofline(run).svg}
    target = folder.absolute()
    if not target.parent.is_dir():
        raise UserError("the folder to hold the report does not exist", where=str(target.parent))
    fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    for name, text in contents.items():
        (fresh / name).write_text(text, encoding="utf-8")
    fresh.chmod(0o755)
    if target.exists():
        shutil.rmtree(target)
    fresh.rename(target)


def _cells(row: Row, run: Run) -> tuple[str, ...]:
    experts = "" if row.distinct is None else str(row.distinct)
    start = (row.kernel, row.shape, str(row.tokens), experts)
    if row.times is None or row.bytes_per_s is None or row.flops_per_s is None:
        return (*start, "WRONG", row.wrong, "", "", "")
    times = row.times
    speed = f"{row.flops_per_s / 1e12:.1f}" if row.flops else ""
    share = f"{row.bytes_per_s / run.ceilings.copy:.0%}"
    beside = ", ".join(f"{name} {_beside(row, one)}" for name, one in row.peers.items())
    return (*start, _micro(times.median), f"{_micro(times.p10)} to {_micro(times.p90)}", share, speed, beside)


def _beside(row: Row, peer: Peer) -> str:
    if peer.times is None or row.times is None:
        return f"({peer.why_not})"
    return f"{peer.times.median / row.times.median:.2f}x"


def _target(one: Outcome) -> tuple[str, ...]:
    worst = "" if one.worst is None else f"{one.worst:.2f}"
    return one.target.name, f"{one.target.floor:.2f}", f"{one.target.aim:.2f}", worst, one.verdict, one.at


def _micro(seconds: float) -> str:
    return f"{seconds * 1e6:.1f} us"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns line up as plain text, too; a pipe in a cell would end it."""
    clean = [[cell.replace("|", "/").replace("\n", " ") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*clean, strict=True)]
    lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in clean]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [f"| {lines[0]} |", rule, *(f"| {line} |" for line in lines[1:])]

"""`qconvert bench kernels`: the kernels timed on this machine's GPU, or an earlier record of that drawn again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qconvert.errors import UserError
from qconvert_reports.cli.finish import FILE, FOLDER, extra_for
from qconvert_reports.cli.parameters import numbers

if TYPE_CHECKING:
    import torch

    from qconvert_kernels.bench.problem import Problem
    from qconvert_kernels.bench.record import Run

QUICK_REPLAYS, REPLAYS = 10, 100


@click.command()
@click.option("--only", default="*", metavar="GLOB", help="Kernels and sizes whose name this fits, such as fp8_w8a8.")
@click.option("--tokens", callback=numbers, metavar="M,…", help="Numbers of tokens; default: 1 to 8192.")
@click.option("--quick", is_flag=True, help="Fewer numbers of tokens and replays.")
@click.option(
    "--tune", is_flag=True, help="Search the quickest tilings and write them as this device's configurations."
)
@click.option(
    "--configurations", type=FOLDER, help="Where --tune writes; QCONVERT_CONFIGURATIONS makes kernels read it."
)
@click.option("--overwrite", is_flag=True, help="Replace configurations that are there.")
@click.option("--from", "record", type=FILE, help="Draw this record instead of measuring; needs no GPU.")
@click.option("--report", "folder", type=FOLDER, help="Write bench.json, bench.md and roofline.svg.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
@click.pass_context
def kernels(
    ctx: click.Context, only: str, tokens: tuple[int, ...] | None, quick: bool, tune: bool, configurations: Path | None,
    overwrite: bool, record: Path | None, folder: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Time the Triton kernels at the 80B model's sizes, beside torch and what else is installed.

    Every result is checked before it is timed; a wrong one is named, not timed, and makes the exit code 1.
    """
    if tune and configurations is None:
        raise UserError("--tune needs a folder to write to", fix="give --configurations DIR")
    with extra_for("bench kernels"):
        from qconvert_kernels.bench import record as records
        from qconvert_reports.kernel_bench import table, write_bench
    if record is not None:
        run = _read(record)
    else:
        device = _gpu()
        every = _problems(only, tokens, quick)
        replays = QUICK_REPLAYS if quick else REPLAYS
        if tune:
            assert configurations is not None
            _tune(every, device, replays, configurations, overwrite)
            return
        run = _measure(every, device, replays)
    if folder is not None:
        write_bench(run, folder)
    click.echo(records.to_json(run) if as_json else table(run), nl=False)
    ctx.exit(1 if any(row.wrong for row in run.rows) else 0)


def _gpu() -> torch.device:
    import torch

    from qconvert_kernels.launch import available

    why_not = available("cuda") if torch.cuda.is_available() else "no CUDA device"
    if why_not is not None or not torch.cuda.is_available():
        raise UserError(
            "the kernels cannot be timed here",
            found=why_not or "no CUDA device",
            fix="run it on a machine with a GPU; --from FILE draws a record that was made there",
        )
    return torch.device("cuda", torch.cuda.current_device())


def _problems(only: str, tokens: tuple[int, ...] | None, quick: bool) -> list[Problem]:
    from qconvert_kernels.bench import measure, shapes

    default = shapes.QUICK_TOKENS if quick else shapes.TOKENS
    every = measure.chosen(measure.problems(tokens or default), only)
    if not every:
        names = sorted({one.kernel for one in measure.problems((1,))})
        raise UserError("no kernel has such a name", found=only, expected=", ".join(names))
    return every


def _measure(every: list[Problem], device: torch.device, replays: int) -> Run:
    from qconvert_kernels.bench import ceilings, measure, record
    from qconvert_kernels.bench.timing import GraphClock

    clock = GraphClock(device, replays)
    limits = ceilings.measure_ceilings(device, clock)
    with _progress(every) as bar:
        rows = measure.run_all(every, device, clock, bar)
    return record.finish(device, limits, rows)


def _tune(every: list[Problem], device: torch.device, replays: int, folder: Path, overwrite: bool) -> None:
    from qconvert_kernels.bench import tune
    from qconvert_kernels.bench.record import describe
    from qconvert_kernels.bench.timing import GraphClock
    from qconvert_kernels.launch import device_name

    clock = GraphClock(device, replays)
    found = []
    for problem in tune.tunable(every):
        one = tune.tune(problem, device, clock)
        skipped = ", ".join(f"{count} {reason}" for reason, count in one.skipped.items()) or "none"
        gain = one.default_seconds / one.seconds
        click.echo(f"{problem.kernel} {problem.shape} {problem.tokens}: {gain:.2f}x of {one.tried}; skipped: {skipped}")
        found.append(one)
    measured = ", ".join(str(value) for value in describe(device).values())
    written, kept = tune.write(tune.configurations(found, measured), device_name(device), folder, overwrite)
    for path in written:
        click.echo(f"wrote {path}")
    if kept:
        raise UserError(
            "configurations are there already", where=", ".join(map(str, kept)), fix="give --overwrite to replace them"
        )


def _read(path: Path) -> Run:
    from qconvert_kernels.bench.record import from_json

    try:
        return from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError, KeyError, TypeError) as error:
        raise UserError("this is no record of kernel timings", where=str(path), found=str(error)) from error


class _progress:
    """A line on stderr for each problem as it begins."""

    def __init__(self, every: list[Problem]) -> None:
        self.total, self.done = len(every), 0

    def __enter__(self) -> _progress:
        return self

    def __exit__(self, *error: object) -> None:
        if self.done:
            click.echo(err=True)

    def __call__(self, problem: Problem) -> None:
        self.done += 1
        line = f"\r{self.done} of {self.total}: {problem.kernel}, {problem.shape}, {problem.tokens} tokens"
        click.echo(line.ljust(100), nl=False, err=True)

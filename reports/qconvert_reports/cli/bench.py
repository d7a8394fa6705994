"""`qconvert bench latency`: time and memory of the lanes by length of context; and the group that benchmarks are in.

Each imports what it needs when it is called.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qconvert_reports.cli.bench_kernels import kernels
from qconvert_reports.cli.compare import command_line, named_candidates
from qconvert_reports.cli.files import free_files, make_folder, write_files
from qconvert_reports.cli.finish import FOLDER, device_option, extra_for, yarn_option
from qconvert_reports.cli.parameters import DATA, checkpoint_options, numbers

if TYPE_CHECKING:
    from qconvert_evals.latency import LatencySettings
    from qconvert_evals.metrics.found import Found

FILES = ("latency.html", "latency.json")

COLUMNS = {
    "prefill": "prefill s",
    "prefill_speed": "prefill tokens/s",
    "decode": "decode s",
    "verify": "verify s",
    "draft": "draft s",
    "tokens_per_step": "tokens per step",
    "mtp_speed_up": "speed-up by MTP",
    "cache_bytes": "cache",
}


@click.group()
def bench() -> None:
    """Time and memory: `bench latency` for the lanes of a comparison, `bench kernels` for the Triton kernels."""


bench.add_command(kernels)


@bench.command()
@checkpoint_options
@click.option("--data", metavar="SPEC", help=f"Text to read: {DATA}.")
@click.option(
    "--contexts",
    callback=numbers,
    default="128,512,2048",
    show_default=True,
    metavar="N,…",
    help="Lengths of context, in tokens.",
)
@click.option(
    "--draft-tokens", type=click.IntRange(min=1), default=3, show_default=True, help="Draft steps of the MTP head."
)
@click.option("--new-tokens", type=click.IntRange(min=2), default=32, show_default=True, help="Tokens to decode.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Timed rounds.")
@device_option
@yarn_option
@click.option(
    "--report", "folder", type=FOLDER, help="Write latency.html, with plots, and latency.json into this folder."
)
@click.option("--overwrite", is_flag=True, help="Replace these files where they exist.")
@click.option("--json", "as_json", is_flag=True, help="Print the measurements as JSON.")
def latency(
    base: str, fp8: str | None, int4: str | None, candidates: tuple[tuple[str, str], ...], data: str | None,
    contexts: tuple[int, ...],
    draft_tokens: int, new_tokens: int, rounds: int, device: str, yarn: float | None,
    folder: Path | None, overwrite: bool, as_json: bool,
) -> None:  # fmt: skip
    """Prefill, decode and speculative decoding of each lane, by length of context.

    Times are those of the reference model on this machine: compare lanes and lengths with one another, not with an
    engine.
    """
    sources = named_candidates({"fp8": fp8, "int4": int4}, candidates, needed=False)
    with extra_for("bench latency"):
        from qconvert.checkpoint import resolve_source
        from qconvert_evals.data import load_documents
        from qconvert_evals.latency import LatencySettings, run
        from qconvert_reports.stages import StageProgress
    if folder is not None:
        with extra_for("bench latency --report"):
            from qconvert_reports.latency_page import render_latency
        free_files([folder / name for name in FILES], overwrite)
    settings = LatencySettings(contexts, draft_tokens, new_tokens, rounds)
    paths = {name: resolve_source(source) for name, source in sources.items()}
    with StageProgress() as progress:
        found = run(resolve_source(base), paths, load_documents(data), settings, progress, device, yarn)
    rows = [row for one in found for row in one.measurements]
    printed = json.dumps([asdict(row) for row in rows], indent=1)
    if folder is not None:
        make_folder(folder)
        page = render_latency(rows, _about(paths, settings, device))
        write_files({folder / "latency.html": page, folder / "latency.json": printed + "\n"})
    if as_json:
        click.echo(printed)
    else:
        click.echo("\n".join(latency_lines(found)))


def _about(paths: Mapping[str, Path], settings: LatencySettings, device: str) -> dict[str, str]:
    """What the page says about the run."""
    from qconvert_evals.identity import versions
    from qconvert_reference.device import choose_device

    said = {name: str(value) for name, value in asdict(settings).items()}
    return {
        "command": command_line(),
        **{name: str(path) for name, path in paths.items()},
        **said,
        **versions(choose_device(device)),
    }


def latency_lines(found: list[Found]) -> list[str]:
    """One line a lane and length, the columns aligned."""
    from qconvert_reports.labels import show_value

    table = [["lane", "context", *COLUMNS.values()]]
    for one in found:
        rows = {(row.name, row.slice): row for row in one.measurements}
        for at in dict.fromkeys(slice_ for _, slice_ in rows if slice_ != "all"):
            cells = [rows[f"latency.{name}", at] for name in COLUMNS]
            shown = [show_value(cell.value, cell.unit) for cell in cells]
            table.append([one.lane, at.removeprefix("context="), *shown])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in table]

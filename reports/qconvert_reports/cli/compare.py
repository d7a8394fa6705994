"""`qconvert compare`: BF16 and its conversions over the same tokens, judged, with a report folder if one is wanted."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qconvert.errors import UserError
from qconvert_reports.cli.finish import (
    FOLDER,
    Judging,
    baseline_options,
    budget_option,
    device_option,
    extra_for,
    finish,
    json_option,
    min_margin_option,
    yarn_option,
)
from qconvert_reports.cli.parameters import DATA, checkpoint_options
from qconvert_reports.cli.task_options import task_options

if TYPE_CHECKING:
    from qconvert_evals.tasks.settings import TaskSettings


@click.command()
@checkpoint_options
@click.option(
    "--data",
    metavar="SPEC",
    help=f"Text to measure on: {DATA}; default: packaged texts.",
)
@click.option("--tokens", type=click.IntRange(min=1), default=16384, show_default=True, help="Tokens to measure.")
@click.option("--seq-len", type=click.IntRange(min=2), default=512, show_default=True, help="Tokens of one sequence.")
@click.option(
    "--draft-tokens", type=click.IntRange(min=1), default=3, show_default=True, help="Draft steps of the MTP head."
)
@click.option(
    "--live-prompts",
    type=click.IntRange(min=0),
    default=24,
    show_default=True,
    help="Prompts to decode for real, drafting; 0: none.",
)
@click.option(
    "--activations",
    type=click.Choice(["auto", "none", "fp8-group128", "fp8-token"]),
    default="auto",
    show_default=True,
    help="How candidates quantize activations; auto: as their config.json asks engines to.",
)
@click.option("--weight-only", is_flag=True, help="Short for --activations none.")
@task_options
@click.option(
    "--kernels",
    type=click.Choice(["auto", "torch", "triton"]),
    default="auto",
    show_default=True,
    help="Who multiplies with quantized weights; auto: Triton on a GPU, torch elsewhere.",
)
@device_option
@yarn_option
@budget_option
@baseline_options
@click.option(
    "--report", "report_folder", type=FOLDER, help="Write report.html, report.md, junit.xml, results.json and tables."
)
@min_margin_option
@json_option
@click.pass_context
def compare(
    ctx: click.Context, base: str, fp8: str | None, int4: str | None,
    candidates: tuple[tuple[str, str], ...], data: str | None,
    tokens: int, seq_len: int, draft_tokens: int, live_prompts: int, activations: str, weight_only: bool,
    tasks: TaskSettings | None, kernels: str, device: str, yarn: float | None, budget_file: Path | None,
    baseline: Path | None, gate_baseline: bool, allowed: tuple[str, ...], report_folder: Path | None,
    min_margin: float | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure how far conversions drift from BF16, and judge it."""
    sources = named_candidates({"fp8": fp8, "int4": int4}, candidates)
    if weight_only and activations.startswith("fp8"):
        raise UserError(f"--weight-only contradicts --activations {activations}", fix="give one of them")
    chosen = "none" if weight_only else None if activations == "auto" else activations
    judging = Judging(
        budget_file, baseline, report_folder, gate_baseline=gate_baseline, allowed=allowed, min_margin=min_margin
    )
    with extra_for("compare"):
        from qconvert.checkpoint import resolve_source
        from qconvert_evals.compare import compare as run
        from qconvert_evals.data import load_documents
        from qconvert_evals.speculation import LiveSettings
        from qconvert_reports.stages import StageProgress
    paths = {name: resolve_source(source) for name, source in sources.items()}
    with StageProgress() as progress:
        results = run(
            resolve_source(base),
            paths,
            documents=load_documents(data),
            tokens=tokens,
            seq_len=seq_len,
            draft_tokens=draft_tokens,
            live=LiveSettings(prompts=live_prompts),
            activations=chosen,
            tasks=tasks,
            kernels=kernels,
            device=device,
            yarn=yarn,
            progress=progress,
        )
    results.tool["command"] = command_line()
    finish(ctx, results, judging, as_json)


def named_candidates(
    known: Mapping[str, str | None], candidates: tuple[tuple[str, str], ...], *, needed: bool = True
) -> dict[str, str]:
    """Lane name -> source; refuses to give none where one is needed."""
    pairs = [*((name, path) for name, path in known.items() if path is not None), *candidates]
    named = dict(pairs)
    if len(named) != len(pairs):
        raise UserError("two candidates have the same name", found=", ".join(name for name, _ in pairs))
    if needed and not named:
        raise UserError("there is nothing to compare with", fix="give --fp8 DST, --int4 DST or --candidate NAME=PATH")
    return named


def command_line() -> str:
    """What was typed, for the report's "reproduce"."""
    return shlex.join(["qconvert", *sys.argv[1:]])

"""`qconvert demo`: quantize, verify and compare the small trained model that ships with the package."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from qconvert_reports.cli.finish import FOLDER, Judging, extra_for, finish, min_margin_option

# INT4 in groups of 32: the small model's experts are 128 wide, and engines split them over GPUs.
SCHEMES = {"fp8": "fp8-block128", "int4": "int4-g32"}


@click.command()
@click.option(
    "--report",
    "report_folder",
    type=FOLDER,
    default=Path("demo-report"),
    show_default=True,
    help="Where the report goes.",
)
@click.option("--work", type=FOLDER, help="Keep the quantized models in this folder; default: a temporary one.")
@min_margin_option
@click.pass_context
def demo(ctx: click.Context, report_folder: Path, work: Path | None, min_margin: float | None) -> None:
    """Quantize, verify and compare the small trained model in the package; no network, no GPU."""
    judging = Judging(None, None, report_folder, min_margin=min_margin)
    with extra_for("demo"):
        from qconvert.quantization import quantize
        from qconvert.verification import verify
        from qconvert_evals.compare import compare as run
        from qconvert_evals.small_model_files import small_model_path
        from qconvert_reports.stages import StageProgress
    source = small_model_path()
    with tempfile.TemporaryDirectory(prefix="qconvert-demo-") as temporary:
        kept = work or Path(temporary)
        kept.mkdir(parents=True, exist_ok=True)
        folders = {name: kept / name for name in SCHEMES}
        for name, scheme in SCHEMES.items():
            quantize(source, folders[name], scheme=scheme)
            click.echo(f"quantized  {source.name} to {scheme}")
            checked = verify(folders[name], source)
            if not checked.ok:
                click.echo("\n".join(f"FAIL {one.name}: {one.detail}" for one in checked.checks if not one.ok))
                ctx.exit(1)
            click.echo(f"verified   {checked.tensors} tensors, {len(checked.checks)} checks")
        with StageProgress() as progress:
            results = run(source, folders, progress=progress)
    results.tool["command"] = "qconvert demo"
    click.echo(f"compared   {results.tool['tokens']:,} tokens\n")
    finish(ctx, results, judging, as_json=False)

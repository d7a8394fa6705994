"""`qconvert demo`: quantize, verify and compare the small trained model that ships with the package."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from qconvert_reports.cli.finish import FOLDER, Judging, extra_for, finish


@click.command()
@click.option(
    "--report",
    "report_folder",
    type=FOLDER,
    default=Path("demo-report"),
    show_default=True,
    help="Where the report goes.",
)
@click.option("--work", type=FOLDER, help="Keep the quantized model in this new folder; default: a temporary one.")
@click.pass_context
def demo(ctx: click.Context, report_folder: Path, work: Path | None) -> None:
    """Quantize, verify and compare the small trained model in the package; no network, no GPU."""
    judging = Judging(None, None, report_folder)
    with extra_for("demo"):
        from qconvert.quantization import quantize
        from qconvert.verification import verify
        from qconvert_evals.compare import compare as run
        from qconvert_evals.small_model_files import small_model_path
        from qconvert_reports.stages import StageProgress
    with tempfile.TemporaryDirectory(prefix="qconvert-demo-") as temporary:
        source, target = small_model_path(), work or Path(temporary) / "fp8"
        manifest = quantize(source, target)
        click.echo(f"quantized  {source.name} to {manifest.recipe.get('scheme', 'fp8')}")
        checked = verify(target, source)
        if not checked.ok:
            click.echo("\n".join(f"FAIL {one.name}: {one.detail}" for one in checked.checks if not one.ok))
            ctx.exit(1)
        click.echo(f"verified   {checked.tensors} tensors, {len(checked.checks)} checks")
        with StageProgress() as progress:
            results = run(source, {"fp8": target}, progress=progress)
    results.tool["command"] = "qconvert demo"
    click.echo(f"compared   {results.tool['tokens']:,} tokens\n")
    finish(ctx, results, judging, as_json=False)

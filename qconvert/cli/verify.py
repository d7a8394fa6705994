"""`qconvert verify DST [--against SRC]`: every check with its answer; exit code 1 when one of them failed."""

import json
from typing import TYPE_CHECKING

import click

from qconvert.cli.quantize import workers_option

if TYPE_CHECKING:
    from qconvert.verification import VerifyReport

FAILED = 1


@click.command()
@click.argument("target", metavar="DST")
@click.option(
    "--against",
    metavar="SRC",
    help="The checkpoint it was made from: compares every kept byte and every quantized weight.",
)
@workers_option("Tensors or files read at a time. The report does not depend on it.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def verify(ctx: click.Context, target: str, against: str | None, workers: int, as_json: bool) -> None:
    """Re-read a checkpoint and check it: complete, well-formed, plausible, and true to its source.

    DST is a folder written by qconvert or anybody else. Exit code 1 when a check failed; the first tensors that fail
    are named.
    """
    from qconvert.cli.progress import ProgressBar
    from qconvert.verification import verify as verify_checkpoint

    with ProgressBar("verify") as progress:
        report = verify_checkpoint(target, against, workers=workers, progress=progress)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    else:
        show(report)
    if not report.ok:
        ctx.exit(FAILED)


def show(report: "VerifyReport") -> None:
    """One line a check, failures with the tensors they name, the verdict last."""
    from qconvert.sizes import format_bytes

    for check in report.checks:
        if check.ok:
            click.echo(f"ok    {check.name}: {check.detail}")
            continue
        click.echo(f"FAIL  {check.name}: {check.failures} failure{'s' if check.failures > 1 else ''}")
        for line in check.detail.splitlines():
            click.echo(f"        {line}")
    for name, why in report.skipped.items():
        click.echo(f"-     {name}: not checked, {why}")
    read = f"{report.tensors:,} tensors, {format_bytes(report.bytes)}"
    failed = sum(not check.ok for check in report.checks)
    click.echo(
        f"{report.target}: {'verified' if report.ok else f'{failed} of {len(report.checks)} checks failed'} ({read})"
    )

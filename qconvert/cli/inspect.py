"""`qconvert inspect SRC`: the inspection as tables on stdout, or as JSON."""

import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from qconvert.inspection import InspectReport


@click.command()
@click.argument("source", metavar="SRC")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def inspect(source: str, as_json: bool) -> None:
    """Show what a checkpoint holds: kinds of tensors, bytes now and under each scheme, memory to serve, traps.

    SRC is a folder, one with nothing but a config.json included, or a hub id (org/name[@revision]). Only headers are
    read.
    """
    from qconvert.inspection import inspect as inspect_checkpoint

    report = inspect_checkpoint(source)
    if as_json:
        click.echo(json.dumps(report.to_json(), indent=2))
    else:
        show(report)


def show(report: "InspectReport") -> None:
    """Heading, kinds, totals, memory, warnings, notes."""
    from rich.console import Console
    from rich.markup import escape

    # A pipe gets the whole table: rich would otherwise cut it to 80 columns.
    console = Console(width=None if Console().is_terminal else 200, highlight=False)
    based_on = "headers of the tensor files" if report.metadata == "tensors" else "config.json alone"
    console.print(escape(f"{report.source}: {report.model_type}, {report.format} (from {based_on})"))
    console.print(kinds_table(report))
    console.print(totals_table(report))
    console.print(memory_lines(report))
    for warning in report.warnings:
        console.print(escape(f"! {warning.engine}: {warning.text}"))
    for note in report.notes:
        console.print(escape(f"- {note}"))


def kinds_table(report: "InspectReport") -> "Table":
    """One row for each kind of tensor."""
    from rich.markup import escape
    from rich.table import Table

    from qconvert.sizes import format_bytes

    table = Table(title="Kinds of tensors")
    table.add_column("kind", no_wrap=True)
    for column in ("shape", "tensors", "parameters", "now", *report.schemes):
        table.add_column(column, justify="right", no_wrap=True)
    for kind in report.kinds:
        shapes = ", ".join("x".join(map(str, shape)) or "scalar" for shape in kind.shapes)
        sizes = [format_bytes(size) for size in (kind.bytes, *(kind.schemes[scheme] for scheme in report.schemes))]
        table.add_row(escape(kind.name), shapes, f"{kind.tensors:,}", f"{kind.parameters:,}", *sizes)
    return table


def totals_table(report: "InspectReport") -> "Table":
    """The folder as it is and under each scheme, with exact bytes."""
    from rich.table import Table

    table = Table(title="Totals")
    table.add_column("as")
    for column in ("tensors", "parameters", "bytes"):
        table.add_column(column, justify="right", no_wrap=True)
    for label, totals in {f"now ({report.format})": report.now, **report.schemes}.items():
        table.add_row(label, f"{totals.tensors:,}", f"{totals.parameters:,}", f"{totals.bytes:,}")
    return table


def memory_lines(report: "InspectReport") -> str:
    """Memory to serve: weights plus one sequence of the longest length, and what each part costs."""
    from qconvert.sizes import format_bytes

    cache = report.cache
    longest = cache.bytes_per_token * cache.longest + cache.bytes_per_sequence
    lines = ["Memory to serve, activations and the engine's own workspace not counted:"]
    for label, totals in {f"now ({report.format})": report.now, **report.schemes}.items():
        whole = format_bytes(totals.bytes + longest)
        lines.append(
            f"  {label}: weights {format_bytes(totals.bytes)}; with one sequence of {cache.longest:,} tokens {whole}"
        )
    per_token, per_sequence = format_bytes(cache.bytes_per_token), format_bytes(cache.bytes_per_sequence)
    lines.append(f"  each token {per_token} of keys and values (BF16), each sequence {per_sequence} of recurrent state")
    return "\n".join(lines)

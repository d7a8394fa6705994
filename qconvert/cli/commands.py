"""The click group `main`: finds commands without importing them, and turns a user's mistake, or what the operating
system refuses, into one message and exit code 2. Anything else is a bug: its traceback is shown and the exit code is
70 (EX_SOFTWARE of sysexits.h), which no gate takes for "over budget".

A command is named by a reference `module:attribute`, as entry points write it. Left out: click's own plug-in
packages, which import every command to list them.
"""

import ast
import importlib
import importlib.util
import io
import os
import re
import sys
import traceback
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from qconvert.errors import UserError
from qconvert.machine import settle
from qconvert.refusals import refusal

CORE = {
    "quantize": "qconvert.cli.quantize:quantize",
    "dequantize": "qconvert.cli.quantize:dequantize",
    "convert": "qconvert.cli.quantize:convert",
    "inspect": "qconvert.cli.inspect:inspect",
    "verify": "qconvert.cli.verify:verify",
}
GROUP = "qconvert.commands"
BAD_INPUT = 2
BUG = 70
SHOW = "QCONVERT_TRACEBACK"  # set to see where in the code the system refused
INTERRUPTED = 130


class Commands(click.Group):
    """A group whose commands are imported only when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The core's commands in their natural order, then those of the other rooms."""
        return list(references())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command; None for an unknown name, which click then reports with the names that are near."""
        reference = references().get(cmd_name)
        return None if reference is None else load(cmd_name, reference)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands for --help, from the source text of each."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary(reference)) for name, reference in references().items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what the user can mend becomes one message on stderr."""
        settle()  # no command's module, and so no torch, is imported yet
        _print_whatever_comes()
        try:
            return super().invoke(ctx)
        except UserError as error:
            click.echo(f"error: {error}", err=True)
            ctx.exit(BAD_INPUT)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            ctx.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click's own ways to end
        except Exception as error:
            said = refusal(error)
            if said is None:
                traceback.print_exc()
                click.echo(
                    f"this is a bug of qconvert: please report it with the lines above (exit code {BUG})", err=True
                )
                ctx.exit(BUG)
            if os.environ.get(SHOW):
                traceback.print_exc()
            click.echo(f"error: {said}", err=True)
            ctx.exit(BAD_INPUT)


def _print_whatever_comes() -> None:
    """A terminal or file that is not UTF-8 gets a mark for what it cannot show: a verdict must not end in an error of
    printing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def references() -> Mapping[str, str]:
    """Name of every command -> `module:attribute`."""
    found = dict(CORE)
    for point in sorted(metadata.entry_points(group=GROUP), key=lambda point: point.name):
        found.setdefault(point.name, point.value)
    return found


def load(name: str, reference: str) -> click.Command:
    """Import the command behind a reference; a missing package becomes a UserError naming the extra that brings it."""
    module, _, attribute = reference.partition(":")
    try:
        command = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing == "qconvert":  # a broken installation or a bug of ours, not something to install
            raise
        raise UserError(
            f"the command `{name}` needs the package `{missing}`, which is not installed",
            fix=f"pip install 'qconvert[{extra_of(missing)}]'",
        ) from error
    assert isinstance(command, click.Command)
    return command


def extra_of(package: str) -> str:
    """The extra of qconvert that brings a package, read from the installed metadata; "all" when none names it."""
    for requirement in metadata.requires("qconvert") or []:
        name = re.match(r"[A-Za-z0-9._-]+", requirement)
        extra = re.search(r"""extra\s*==\s*['"]([^'"]+)""", requirement)
        if name and extra and name.group().lower().replace("-", "_") == package.lower():
            return extra.group(1)
    return "all"


def summary(reference: str) -> str:
    """First line of a command's docstring, read from the source file without running it."""
    module, _, attribute = reference.partition(":")
    try:
        spec = importlib.util.find_spec(module)
    except ModuleNotFoundError:
        return "(not installed)"
    if spec is None or spec.origin is None:
        return "(not installed)"
    for node in ast.parse(Path(spec.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef) and node.name == attribute:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    return ""


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="qconvert", prog_name="qconvert")
def main() -> None:
    """Quantize Qwen3-Next checkpoints, verify every byte, compare both precisions."""

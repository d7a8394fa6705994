"""Options that several commands share, and callbacks for values that click does not know: numbers between commas, and
a name with a path.

A wrong one is refused as click refuses all others, naming the option, with exit code 2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])
DATA = "file.txt, file.jsonl, file.parquet, or a data set NAME[:CONFIG][:SPLIT]"


def numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """`512,128` -> (128, 512): positive whole numbers, rising, each once."""
    if value is None:
        return None
    parts = value.split(",")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"expected numbers of tokens such as 128,512,2048, found {value!r}")
    return tuple(sorted({int(part) for part in parts}))


def named(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """`int4=runs/int4` -> ("int4", "runs/int4"), of an option that may be repeated; the path may hold another `=`."""
    pairs = [(one, *one.partition("=")[::2]) for one in values]
    for one, name, path in pairs:
        if not (name and path):
            raise click.BadParameter(f"it needs a name and a path: expected NAME=PATH, found {one!r}")
    return tuple((name, path) for _, name, path in pairs)


def checkpoint_options(command: Command) -> Command:
    """The base and its conversions: --bf16, --fp8, --int4, --candidate."""
    options = (
        click.option("--bf16", "base", required=True, metavar="SRC", help="The BF16 checkpoint: a folder or a hub id."),
        click.option("--fp8", metavar="DST", help="Its FP8 conversion; short for --candidate fp8=DST."),
        click.option("--int4", metavar="DST", help="Its INT4 conversion; short for --candidate int4=DST."),
        click.option(
            "--candidate", "candidates", multiple=True, callback=named, metavar="NAME=PATH",
            help="Another conversion; may be repeated.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command

"""Callbacks for values that click does not know: numbers between commas, and a name with a path.

A wrong one is refused as click refuses all others, naming the option, with exit code 2.
"""

from __future__ import annotations

import click


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

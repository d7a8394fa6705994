"""Kinds of values that click does not know: numbers between commas, and a name with a path.

A wrong one is refused as click refuses all others, naming the option, with exit code 2.
"""

from __future__ import annotations

import click


class Numbers(click.ParamType):
    """`512,128` -> (128, 512): positive whole numbers, rising, each once."""

    name = "numbers"

    def convert(
        self, value: str | tuple[int, ...], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        """A default may be given as numbers already."""
        if isinstance(value, tuple):
            return value
        parts = value.split(",")
        if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
            self.fail(f"expected numbers of tokens such as 128,512,2048, found {value!r}", param, ctx)
        return tuple(sorted({int(part) for part in parts}))


class Named(click.ParamType):
    """`int4=runs/int4` -> ("int4", "runs/int4")."""

    name = "named"

    def convert(
        self, value: str | tuple[str, str], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        """The path may hold another `=`."""
        if isinstance(value, tuple):
            return value
        name, _, path = value.partition("=")
        if not (name and path):
            self.fail(f"it needs a name and a path: expected NAME=PATH, found {value!r}", param, ctx)
        return name, path

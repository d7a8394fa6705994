"""Options of the commands that take a baseline: whether it gates, and which unlike baselines are let through."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

KINDS = ["base", "tokens", "settings"]  # of `likeness`, which is not imported for a list of words
Command = TypeVar("Command", bound=Callable[..., object])


def gate_options(command: Command) -> Command:
    """--gate-baseline and --allow-other, which reach the command as `gate_baseline` and `allowed`."""
    allow = click.option(
        "--allow-other",
        "allowed",
        multiple=True,
        type=click.Choice(KINDS),
        help="Compare with a baseline of another BF16 model, other tokens or settings all the same; repeatable.",
    )
    gate = click.option(
        "--gate-baseline", is_flag=True, help="Fail where something changed for the worse since the baseline."
    )
    return gate(allow(command))

"""Recording what enters the linears while a layer runs, for whoever calibrates on it.

    with recording(names) as found:          names of the weights whose inputs are wanted
        layer(hidden)
    found.inputs[name]                       x [..., K] of that linear, as it entered the product
    found.routed, found.chosen               x [B, T, H] of a mixture of experts, and the experts [B, T, k] it went to

Inputs are kept as they are, without copies: linears that share an input share its memory. An expert's inputs are rows
of the mixture's, so they are not recorded again. A recording sees what its own thread runs, and one mixture at most.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Recording:
    """What was seen so far."""

    wanted: Collection[str]
    inputs: dict[str, Tensor] = field(default_factory=dict)
    routed: Tensor | None = None
    chosen: Tensor | None = None


_current: ContextVar[Recording | None] = ContextVar("recording", default=None)


@contextmanager
def recording(wanted: Collection[str]) -> Iterator[Recording]:
    """Record the inputs of these weights, and the routes, in this thread until the block is left."""
    found = Recording(wanted)
    token = _current.set(found)
    try:
        yield found
    finally:
        _current.reset(token)


def record_input(name: str, x: Tensor) -> None:
    """Called by every linear."""
    found = _current.get()
    if found is not None and name in found.wanted:
        found.inputs[name] = x


def record_routes(x: Tensor, experts: Tensor) -> None:
    """Called by every mixture of experts."""
    found = _current.get()
    if found is not None:
        found.routed, found.chosen = x, experts

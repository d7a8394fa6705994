"""How many threads a stage computes with.

A token at a time through a small model is thousands of products of a few microseconds each. Two threads gain nothing
there, because they meet after every one, and lose much where another process keeps a core busy: each meeting then waits
for a thread that is not running (measured on two cores with the shipped model: as fast as two threads while idle, 1.1
times its idle time beside a busy process, where two threads take 4 times). From about a million numbers a weight on,
reading it is the work, and every core helps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from qconvert_reference.config import ModelConfig

LARGE = 1 << 20  # numbers in a weight


@contextmanager
def single_tokens(config: ModelConfig) -> Iterator[None]:
    """For a loop that feeds one token at a time: one thread, unless the model is large."""
    before = torch.get_num_threads()
    if config.hidden_size**2 < LARGE:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""A tiny tokenizer with special tokens, and helpers to run tasks without a comparison around them."""

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("lm_eval")


@pytest.fixture(autouse=True)
def _inference() -> object:
    with torch.inference_mode():
        yield


def quiet(stage: str, total: int) -> Callable[[], None]:
    """Progress that nobody watches."""
    return lambda: None

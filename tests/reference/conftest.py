"""Tiny models for the tests of the reference room."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qconvert_reference.config import ModelConfig
from qconvert_reference.linear import Numerics
from qconvert_reference.models.qwen3_next import Model
from tests.tiny import tiny_config, tiny_tensors

BuildModel = Callable[..., Model]


@pytest.fixture
def build_model() -> BuildModel:
    """A tiny random model: build_model(numerics, seed=0, **config overrides)."""

    def build(numerics: Numerics | None = None, seed: int = 0, **overrides: Any) -> Model:
        config = tiny_config(**overrides)
        tensors = tiny_tensors(config, seed)
        return Model(ModelConfig.from_dict(config), tensors.__getitem__, numerics or Numerics(torch.float32))

    return build


@pytest.fixture
def tokens() -> torch.Tensor:
    """Two sequences of 150 tokens: two whole chunks of the delta rule and a tail."""
    return torch.randint(0, 256, (2, 150), generator=torch.Generator().manual_seed(7))


@pytest.fixture
def witness() -> Callable[[dict[str, Any], Path], Any]:
    """transformers' model for a config, every parameter random, saved into a folder."""
    transformers = pytest.importorskip("transformers")

    def make(config: dict[str, Any], folder: Path, seed: int = 0) -> Any:
        model = transformers.Qwen3NextForCausalLM(transformers.Qwen3NextConfig(**config)).float().eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                spread = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + _centre(name))
        model.save_pretrained(folder)
        return model

    return make


def _centre(name: str) -> float:
    """Where a parameter's values lie. Slow decay (A_log about -2), as in trained heads: the state then sums up tokens.

    A state that forgets at once leaves sums of one or two products; where they cancel, the gated norm magnifies their
    rounding errors.
    """
    if name.endswith("linear_attn.norm.weight"):
        return 1.0
    return -2.0 if name.endswith("A_log") else 0.0

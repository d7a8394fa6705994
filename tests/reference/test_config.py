"""What the config accepts, derives and refuses by name; rotary frequencies at the 80B model's sizes."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from qconvert.errors import UserError
from qconvert_reference.config import ModelConfig
from qconvert_reference.rope import Rotary, frequencies
from tests.tiny import tiny_config

CARD = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 262144}


def config_80b(**overrides: Any) -> ModelConfig:
    path = Path(__file__).parent.parent / "fixtures" / "qwen3_next_80b_config.json"
    return ModelConfig.from_dict(json.loads(path.read_text()) | overrides)


def test_80b() -> None:
    config = config_80b()
    assert [i for i, kind in enumerate(config.layer_types) if kind == "full_attention"] == list(range(3, 48, 4))
    assert all(config.is_sparse(i) for i in range(48))
    assert (config.rope.theta, config.rope.partial_rotary_factor, config.rope.rope_type) == (1e7, 0.25, "default")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "gelu"),
        ("attention_bias", True),
        ("use_sliding_window", True),
        ("sliding_window", 4096),
        ("attn_output_gate", False),
        ("num_nextn_predict_layers", 2),
        ("model_type", "qwen3_moe"),
        ("layer_types", ["full_attention"]),
        ("layer_types", ["sliding_attention"] * 4),
        ("rope_scaling", {"rope_type": "longrope", "factor": 4.0}),
        ("rope_scaling", {"rope_type": "yarn"}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 4.0, "mscale_all_dim": 1.0}),
        ("num_key_value_heads", 3),
        ("linear_num_key_heads", 3),
        ("num_experts_per_tok", 5),
    ],
)
def test_what_is_not_computed_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(UserError, match=key):
        ModelConfig.from_dict(tiny_config(**{key: value}))


def test_dense_layers() -> None:
    config = ModelConfig.from_dict(tiny_config(num_hidden_layers=8, decoder_sparse_step=2, mlp_only_layers=[3]))
    assert [i for i in range(8) if config.is_sparse(i)] == [1, 5, 7]


def test_yarn_of_the_model_card() -> None:
    """Dimensions 0..14 unchanged, 22.. divided by four, a ramp between; cos and sin times 0.1 ln 4 + 1."""
    config = config_80b(rope_scaling=CARD)
    found, scale = frequencies(config.rope, config.head_dim)
    plain, _ = frequencies(config_80b().rope, config.head_dim)
    assert scale == pytest.approx(1.1386294, abs=1e-7)
    torch.testing.assert_close(found[:15], plain[:15], rtol=2**-22, atol=0)
    torch.testing.assert_close(found[22:], plain[22:] / 4, rtol=2**-22, atol=0)
    torch.testing.assert_close(found[18], plain[18] * (0.5 + 0.5 / 4), rtol=2**-22, atol=0)


def test_only_the_rotary_part_turns_and_by_the_right_angle() -> None:
    rope = config_80b().rope
    x = torch.zeros(1, 1, 2, 256)
    x[..., 0] = 1.0  # pair 0, frequency 1
    x[..., 100] = 7.0  # beyond the rotated 64
    turned = Rotary(rope, 256)(x, start=5)
    assert turned[0, 0, 1, 0] == pytest.approx(math.cos(6), abs=1e-6)
    assert turned[0, 0, 1, 32] == pytest.approx(math.sin(6), abs=1e-6)
    assert torch.equal(turned[..., 64:], x[..., 64:])

"""fp32 logits beside transformers' Qwen3NextForCausalLM, on configs that differ in everything that can differ."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qconvert_reference.cache import Cache
from qconvert_reference.config import ModelConfig
from qconvert_reference.lane import Lane
from qconvert_reference.linear import Numerics
from tests.tiny import tiny_config

CONFIGS: dict[str, dict[str, Any]] = {
    "as released": {},
    "other heads, no top-k normalisation": {
        "num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 32, "linear_num_key_heads": 3,
        "linear_num_value_heads": 3, "norm_topk_prob": False, "partial_rotary_factor": 0.5,
    },
    "many experts, wide shared expert, dense first layer": {
        "num_experts": 12, "num_experts_per_tok": 5, "shared_expert_intermediate_size": 384, "mlp_only_layers": [0],
        "linear_value_head_dim": 48, "linear_num_value_heads": 6,
    },
    "attention every second layer, experts every second": {
        "full_attention_interval": 2, "num_hidden_layers": 5, "decoder_sparse_step": 2, "num_key_value_heads": 1,
        "num_experts_per_tok": 1, "linear_conv_kernel_dim": 3,
    },
    "odd sizes, six layers, two of them dense, tied embeddings": {
        "hidden_size": 72, "num_hidden_layers": 6, "full_attention_interval": 3, "mlp_only_layers": [2, 4],
        "vocab_size": 301, "num_key_value_heads": 4, "moe_intermediate_size": 40, "norm_topk_prob": False,
        "rope_theta": 10000, "tie_word_embeddings": True,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_routes_and_pieces_equal_transformers(
    name: str, witness: Callable[..., Any], tokens: torch.Tensor, tmp_path: Path
) -> None:
    theirs = witness(tiny_config(**CONFIGS[name]), tmp_path)
    lane = Lane.open("bf16", tmp_path, Numerics(torch.float32))
    model = lane.model()
    assert model.mtp is None  # transformers does not save the head
    with torch.no_grad():
        expected = theirs(tokens).logits
        full = model(tokens)
        cache = Cache.empty(model.config)
        pieces = [model(part, cache).logits for part in tokens[:, :140].split([70, 5, 65], 1)]
        pieces += [model(token, cache).logits for token in tokens[:, 140:].split(1, 1)]
    assert (full.logits - expected).abs().max() < 1e-4
    assert (torch.cat(pieces, 1) - expected).abs().max() < 1e-4
    assert [router is not None for router in full.routers] == [
        model.config.is_sparse(i) for i in range(model.config.num_hidden_layers)
    ]


def test_yarn_equals_transformers(witness: Callable[..., Any], tokens: torch.Tensor, tmp_path: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    config = tiny_config(rope_scaling=scaling, partial_rotary_factor=0.5, rope_theta=10000)
    theirs = witness(config, tmp_path)
    lane = Lane.open("bf16", tmp_path, Numerics(torch.float32))
    rotary = lane.model().layers[3].mixer.rotary  # type: ignore[union-attr]
    torch.testing.assert_close(
        rotary.frequencies, theirs.model.rotary_emb.inv_freq, rtol=2**-21, atol=0
    )  # four roundings
    assert rotary.scale == theirs.model.rotary_emb.attention_scaling != 1.0
    with torch.no_grad():
        assert (lane.model()(tokens).logits - theirs(tokens).logits).abs().max() < 1e-4


def test_released_and_resaved_config_mean_the_same(witness: Callable[..., Any], tmp_path: Path) -> None:
    config = tiny_config(
        rope_theta=12345.0, rope_scaling={"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
    )
    witness(config, tmp_path)
    resaved = Lane.open("bf16", tmp_path, Numerics()).weights.config
    assert "rope_theta" not in resaved and "full_attention_interval" not in resaved
    assert ModelConfig.from_dict(resaved) == ModelConfig.from_dict(config)

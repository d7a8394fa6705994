"""Builders of tiny random Qwen3-Next checkpoints: a few megabytes with every kind of tensor the real one has."""

from pathlib import Path
from typing import Any

import torch

from qconvert.checkpoint import write_checkpoint
from qconvert.families import family_of


def tiny_config(**overrides: Any) -> dict[str, Any]:
    """A config.json with three Gated DeltaNet layers and one attention layer; quantized dims are multiples of 128."""
    config: dict[str, Any] = {
        "architectures": ["Qwen3NextForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "decoder_sparse_step": 1,
        "eos_token_id": 2,
        "full_attention_interval": 4,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 128,
        "initializer_range": 0.02,
        "intermediate_size": 256,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 32,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_value_head_dim": 32,
        "max_position_embeddings": 4096,
        "mlp_only_layers": [],
        "model_type": "qwen3_next",
        "moe_intermediate_size": 128,
        "norm_topk_prob": True,
        "num_attention_heads": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "output_router_logits": False,
        "partial_rotary_factor": 0.25,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000000,
        "router_aux_loss_coef": 0.001,
        "shared_expert_intermediate_size": 128,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 256,
    }
    return config | overrides


def tiny_tensors(config: dict[str, Any], seed: int = 0, mtp: bool = True) -> dict[str, torch.Tensor]:
    """Random tensors for every name of the family's inventory, BF16, at the scale of a trained model."""
    generator = torch.Generator().manual_seed(seed)
    family = family_of(config)
    shapes = {n: s for n, s in family.inventory(config).items() if mtp or not n.startswith(family.mtp_prefix)}
    return {name: _random(name, shape, generator).bfloat16() for name, shape in shapes.items()}


def write_tiny_checkpoint(
    folder: str | Path, config: dict[str, Any] | None = None, seed: int = 0, shards: int = 2, mtp: bool = True
) -> Path:
    """A checkpoint folder with tokenizer-like files beside it, so that copying them can be seen."""
    config = tiny_config() if config is None else config
    root = write_checkpoint(folder, config, tiny_tensors(config, seed, mtp), shards)
    (root / "generation_config.json").write_text('{"eos_token_id": 2}\n')
    (root / "LICENSE").write_text("free\n")
    return root


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    values = torch.randn(shape, generator=generator)
    if name.endswith("A_log"):
        return values.abs().add(0.5).log()
    if name.endswith("linear_attn.norm.weight"):
        return 1 + 0.1 * values  # the only norm that is not stored as weight - 1
    if len(shape) == 1:
        return 0.1 * values
    return values * shape[-1] ** -0.5

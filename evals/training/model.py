"""The small model: its config.json, its first weights, and the loss it is trained with.

    loss = CE(trunk, x_{t+1}) + 0.4 (KL(trunk at t+1 || draft) / 2 + CE(draft, x_{t+2}) / 2) + 0.01 balance

The draft is taught what the trunk will say (the trunk held fixed in that term) as much as what the text says:
acceptance is agreement with the trunk. From half of the training on, the second draft step (the head fed with its own
output) is taught too, with the same two terms at half the weight. `balance` is the usual E * sum_e (share of tokens
sent to e) (mean probability of e), averaged over the routers: 1 when all experts are used alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qconvert.families import family_of
from qconvert_reference.config import ModelConfig
from qconvert_reference.linear import Numerics
from qconvert_reference.models.qwen3_next import Model
from qconvert_reference.moe import RouterTrace
from training.tokenizer import END_ID, VOCABULARY

DRAFT_WEIGHT, BALANCE_WEIGHT, DISTILLED = 0.4, 0.01, 0.5
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3NextForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": END_ID,
    "decoder_sparse_step": 1,
    "eos_token_id": END_ID,
    "full_attention_interval": 4,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 128,
    "max_position_embeddings": 4096,
    "mlp_only_layers": [],
    "model_type": "qwen3_next",
    "moe_intermediate_size": 128,
    "norm_topk_prob": True,
    "num_attention_heads": 4,
    "num_experts": 16,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "output_router_logits": False,
    "partial_rotary_factor": 0.25,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 100000,
    "router_aux_loss_coef": 0.001,
    "shared_expert_intermediate_size": 128,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.57.0",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": VOCABULARY,
}


def first_weights(config: Mapping[str, Any], seed: int) -> dict[str, nn.Parameter]:
    """fp32 parameters for every tensor of the checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    shapes = family_of(dict(config)).inventory(config)
    return {name: nn.Parameter(_first(name, shape, generator)) for name, shape in shapes.items()}


def _first(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Normal with unit gain; what writes to the residual stream smaller; decays spread over time scales."""
    if name.endswith("A_log"):
        return torch.empty(shape).uniform_(1, 16, generator=generator).log()
    if name.endswith("dt_bias"):  # softplus(dt_bias) between 0.001 and 0.1, evenly in its logarithm
        step = torch.empty(shape).uniform_(math.log(0.001), math.log(0.1), generator=generator).exp()
        return step + torch.log(-torch.expm1(-step))
    if name.endswith("linear_attn.norm.weight"):
        return torch.ones(shape)
    if len(shape) == 1:
        return torch.zeros(shape)
    if name.endswith("conv1d.weight"):
        return torch.empty(shape).uniform_(-0.5, 0.5, generator=generator)
    gain = 0.3 if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight", "lm_head.weight")) else 1.0
    return torch.randn(shape, generator=generator) * (gain / math.sqrt(shape[-1]))


def build(weights: Mapping[str, Tensor]) -> Model:
    """The reference model over these weights, computing in BF16."""
    return Model(ModelConfig.from_dict(CONFIG), weights.__getitem__, Numerics(torch.bfloat16))


def losses(model: Model, rows: Tensor, draft_steps: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of rows [B, T+3] of tokens (T positions are predicted), and its parts."""
    length = rows.shape[1] - 3
    out = model(rows[:, :length])
    parts = {"trunk": F.cross_entropy(out.logits.flatten(0, 1), rows[:, 1 : length + 1].flatten())}
    routers, total, hidden = list(out.routers), parts["trunk"], out.normed
    assert model.mtp is not None
    for step in range(1, draft_steps + 1):
        draft = model.mtp(rows[:, step : length + step], hidden)
        routers.append(draft.router)
        hidden, logits = draft.normed, model.logits(draft.normed)
        own = F.cross_entropy(logits.flatten(0, 1), rows[:, step + 1 : length + step + 1].flatten())
        target = out.logits[:, step:].detach().log_softmax(-1).flatten(0, 1)
        taught = F.kl_div(
            logits[:, :-step].log_softmax(-1).flatten(0, 1), target, reduction="batchmean", log_target=True
        )
        parts[f"draft{step}"], parts[f"kl{step}"] = own, taught
        total = total + DRAFT_WEIGHT / step * (DISTILLED * taught + (1 - DISTILLED) * own)
    parts["balance"] = torch.stack([_balance(router) for router in routers if router is not None]).mean()
    return total + BALANCE_WEIGHT * parts["balance"], parts


def _balance(router: RouterTrace) -> Tensor:
    """E * sum over experts of (share of choices) * (mean probability)."""
    experts = router.logits.shape[-1]
    chosen = torch.bincount(router.experts.flatten(), minlength=experts).float() / router.experts.numel()
    return experts * (chosen * router.logits.flatten(0, 1).softmax(-1).mean(0)).sum()

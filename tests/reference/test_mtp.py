"""The multi-token-prediction head against an independent computation; all drafts at once against drafts made live."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qconvert_reference.cache import AttentionState
from qconvert_reference.linear import Numerics
from tests.tiny import tiny_config, tiny_tensors


def test_head_equals_a_transformers_layer_between_naive_norms(
    build_model: Callable[..., Any], tokens: torch.Tensor
) -> None:
    modeling = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    config, model = tiny_config(), build_model()
    tensors = {name: tensor.float() for name, tensor in tiny_tensors(config).items()}
    their_config = modeling.Qwen3NextConfig(**config)
    their_config._attn_implementation, their_config._experts_implementation = "eager", "eager"
    layer = modeling.Qwen3NextDecoderLayer(their_config, 3).eval()
    layer.load_state_dict(_fused_layer(tensors, "mtp.layers.0.", config["num_experts"]))

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, x.shape[-1:], 1 + tensors[name], eps=config["rms_norm_eps"])

    hidden = torch.randn(2, 40, 128, generator=torch.Generator().manual_seed(3))
    following = tokens[:, :40]
    with torch.no_grad():
        embedded = norm(tensors["model.embed_tokens.weight"][following], "mtp.pre_fc_norm_embedding.weight")
        joined = torch.cat((embedded, norm(hidden, "mtp.pre_fc_norm_hidden.weight")), -1) @ tensors["mtp.fc.weight"].T
        angles = modeling.Qwen3NextRotaryEmbedding(their_config)(joined, torch.arange(40)[None])
        mask = torch.full((40, 40), float("-inf")).triu(1)[None, None]
        expected = norm(layer(joined, position_embeddings=angles, attention_mask=mask), "mtp.norm.weight")
        ours = model.mtp(following, hidden).normed
    assert (ours - expected).abs().max() < 1e-5 * expected.abs().max()


def _fused_layer(tensors: dict[str, torch.Tensor], prefix: str, experts: int) -> dict[str, torch.Tensor]:
    """The layer's tensors under transformers' names in memory: experts stacked, gate and up in one."""
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    parts = {
        part: torch.stack([own.pop(f"mlp.experts.{e}.{part}_proj.weight") for e in range(experts)])
        for part in ("gate", "up", "down")
    }
    own["mlp.experts.gate_up_proj"] = torch.cat((parts["gate"], parts["up"]), 1)
    own["mlp.experts.down_proj"] = parts["down"]
    return own


def test_all_drafts_at_once_equal_drafts_made_live(build_model: Callable[..., Any], tokens: torch.Tensor) -> None:
    model, steps = build_model(), 3
    tokens = tokens[:1, :20]
    with torch.no_grad():
        hidden = model(tokens).normed
        together = model.mtp.teacher_forced(tokens, hidden, steps)
        for t in range(20 - steps):
            state = AttentionState()
            draft = model.mtp(tokens[:, 1 : t + 2], hidden[:, : t + 1], state).normed[:, -1:]
            for step in range(steps):
                torch.testing.assert_close(together[step].normed[:, t : t + 1], draft, rtol=0, atol=1e-5)
                if step + 1 < steps:
                    draft = model.mtp(tokens[:, t + step + 2 : t + step + 3], draft, state, t + step + 1).normed
    assert [out.normed.shape[1] for out in together] == [19, 18, 17]


def test_gradients_reach_every_parameter() -> None:
    from qconvert_reference.config import ModelConfig
    from qconvert_reference.models.qwen3_next import Model

    config = tiny_config(num_experts_per_tok=4)  # all experts, so that none is idle
    parameters = {name: torch.nn.Parameter(tensor.float()) for name, tensor in tiny_tensors(config).items()}
    model = Model(ModelConfig.from_dict(config), parameters.__getitem__, Numerics(torch.bfloat16))
    tokens = torch.randint(0, 256, (2, 70), generator=torch.Generator().manual_seed(0))
    out = model(tokens)
    assert model.mtp is not None
    drafts = model.mtp.teacher_forced(tokens, out.normed, 2)
    loss = out.logits.logsumexp(-1).mean() + sum(model.logits(draft.normed).logsumexp(-1).mean() for draft in drafts)
    loss.backward()
    assert [n for n, p in parameters.items() if p.grad is None or not p.grad.isfinite().all() or not p.grad.any()] == []

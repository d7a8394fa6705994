"""Gated full attention (grouped queries).

    [q_h | gate_h]   rows of q_proj for head h: interleaved per head, the query first, then its gate
    q, k             zero-centred RMSNorm per head, then partial rotary embedding; v and the gate stay as they are
    a_h              = softmax_{s <= t}(q_h . k_s / sqrt(head_dim)) v_s
                     query head h reads key/value head h // (heads / kv_heads)
    y                = o_proj(a * sigmoid(gate))

The softmax runs in torch's fused attention, in the compute dtype with fp32 inside. Biases and sliding windows, which no
released checkpoint has, are refused by the config.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qconvert_reference.cache import AttentionState, DraftState
from qconvert_reference.config import ModelConfig
from qconvert_reference.linear import Load, Numerics, Shared, load_linear, load_tensor
from qconvert_reference.norm import rms_norm
from qconvert_reference.rope import Rotary


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """True where query i (the last `queries` of `keys` positions) may look; [queries, keys]."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


class Attention:
    """One gated attention block, its weights found under `prefix`."""

    def __init__(self, config: ModelConfig, prefix: str, load: Load, numerics: Numerics) -> None:
        self.config = config
        self.q_proj = load_linear(load, f"{prefix}.q_proj.weight", numerics)
        self.k_proj = load_linear(load, f"{prefix}.k_proj.weight", numerics)
        self.v_proj = load_linear(load, f"{prefix}.v_proj.weight", numerics)
        self.o_proj = load_linear(load, f"{prefix}.o_proj.weight", numerics)
        self.q_norm = load_tensor(load, f"{prefix}.q_norm.weight")
        self.k_norm = load_tensor(load, f"{prefix}.k_norm.weight")
        self.rotary = Rotary(config.rope, config.head_dim)

    def __call__(self, x: Tensor, state: AttentionState | DraftState | None = None, start: int = 0) -> Tensor:
        """x [B, T, H] -> y [B, T, H]; `start` is the position of the first token."""
        config, (batch, tokens, _) = self.config, x.shape
        heads = (batch, tokens, -1, config.head_dim)
        shared = Shared(x)
        # Each [B, T, heads, hd].
        query, gate = self.q_proj(shared).view(batch, tokens, -1, 2 * config.head_dim).chunk(2, -1)
        query = rms_norm(query, self.q_norm, config.rms_norm_eps).transpose(1, 2)  # [B, heads, T, hd]
        key = rms_norm(self.k_proj(shared).view(heads), self.k_norm, config.rms_norm_eps).transpose(1, 2)
        value = self.v_proj(shared).view(heads).transpose(1, 2)
        query, key = self.rotary(query, start), self.rotary(key, start)
        if isinstance(state, DraftState):
            attended = attend_as_drafts(query, *state.extend(key, value))
        elif state is not None:
            attended = attend(query, *state.append(key, value))
        else:
            attended = attend(query, key, value)
        attended = attended.transpose(1, 2)  # [B, T, heads, hd]
        return self.o_proj((attended * torch.sigmoid(gate)).reshape(batch, tokens, -1))


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal softmax attention; query [B, heads, T, hd]: the last T of the L positions of key, value [B, kv, L, hd]."""
    tokens, length = query.shape[2], key.shape[2]
    if tokens == length:
        return F.scaled_dot_product_attention(query, key, value, is_causal=tokens > 1, enable_gqa=True)
    mask = causal_mask(tokens, length, query.device) if tokens > 1 else None
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)


def attend_as_drafts(query: Tensor, keys: Tensor, values: Tensor, own_keys: Tensor, own_values: Tensor) -> Tensor:
    """Attention of many drafts at once, as if each had been made alone (see DraftState).

    query [B, heads, T, hd], one draft per origin t; keys, values [B, kv, >= T, hd]: the context, of which draft t sees
    0 .. t; own_keys, own_values [B, kv, T, n, hd]: what draft t itself has appended.
    """
    tokens, dtype = query.shape[2], query.dtype
    query = (
        query.view(query.shape[0], keys.shape[1], -1, *query.shape[2:]).float() * query.shape[-1] ** -0.5
    )  # [B, kv, group, T, hd]
    keys, values, own_keys, own_values = (x.float()[:, :, :tokens] for x in (keys, values, own_keys, own_values))
    context = query @ keys[:, :, None].transpose(-1, -2)  # [B, kv, group, T, T]
    context = context.masked_fill(~causal_mask(tokens, tokens, query.device), float("-inf"))
    own = torch.einsum("bkgtd,bktnd->bkgtn", query, own_keys)
    weights = torch.cat((context, own), -1).softmax(-1)
    out = weights[..., :tokens] @ values[:, :, None]
    out = out + torch.einsum("bkgtn,bktnd->bkgtd", weights[..., tokens:], own_values)
    return out.flatten(1, 2).to(dtype)

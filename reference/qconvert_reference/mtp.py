"""The multi-token-prediction head: one more decoder layer that drafts the token after next.

    step 1     x_t = fc [ norm_e(embedding of token t+1) ; norm_h(h_t) ]      h_t: trunk output behind the final norm
               d_t = norm(decoder layer(x_t)),   draft of token t+2 = argmax lm_head d_t
    step n+1   the same with h = d of step n and the token just drafted

The embedding comes first in the concatenation. Embedding and lm_head are the trunk's own. The layer is full attention
with experts and has its own keys and values; positions count like those of h_t (only differences matter).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from qconvert_reference.cache import AttentionState, DraftState
from qconvert_reference.config import ModelConfig
from qconvert_reference.layer import DecoderLayer
from qconvert_reference.linear import Load, Numerics, load_linear, load_tensor
from qconvert_reference.moe import RouterTrace
from qconvert_reference.norm import rms_norm


class MtpOutput(NamedTuple):
    """normed [B, T, H]: behind mtp.norm, for the next step and the shared lm_head; router: the layer's routes."""

    normed: Tensor
    router: RouterTrace | None


class MtpHead:
    """The head of a checkpoint, over the trunk's embedding."""

    def __init__(self, config: ModelConfig, load: Load, numerics: Numerics, embed: Callable[[Tensor], Tensor]) -> None:
        self.eps = config.rms_norm_eps
        self.embed = embed
        self.fc = load_linear(load, "mtp.fc.weight", numerics)
        self.norm_embedding = load_tensor(load, "mtp.pre_fc_norm_embedding.weight")
        self.norm_hidden = load_tensor(load, "mtp.pre_fc_norm_hidden.weight")
        self.norm = load_tensor(load, "mtp.norm.weight")
        self.layer = DecoderLayer(config, "mtp.layers.0", load, numerics, "full_attention")

    def __call__(
        self, tokens_next: Tensor, hidden: Tensor, state: AttentionState | DraftState | None = None, start: int = 0
    ) -> MtpOutput:
        """tokens_next [B, T]: the token after each position of hidden [B, T, H], the first of which is `start`."""
        embedding = rms_norm(self.embed(tokens_next), self.norm_embedding, self.eps)
        joined = torch.cat((embedding, rms_norm(hidden, self.norm_hidden, self.eps)), -1)  # [B, T, 2H]
        out = self.layer(self.fc(joined), state, start)
        return MtpOutput(rms_norm(out.hidden, self.norm, self.eps), out.router)

    def teacher_forced(self, tokens: Tensor, hidden: Tensor, steps: int) -> list[MtpOutput]:
        """Drafts from every position at once, given the true tokens [B, T] and the trunk's hidden [B, T, H].

        Entry n-1 is draft step n, [B, T-n, ...]: at position t it has read tokens 0 .. t+n and predicts token t+n+1.
        Each draft attends to what it would attend to when made alone: step 1 of the positions up to its own, then its
        own later steps.
        """
        context = AttentionState()
        out = self(tokens[:, 1:], hidden[:, :-1], context)
        assert context.keys is not None and context.values is not None
        drafts, outputs = DraftState(context.keys, context.values), [out]
        for step in range(2, steps + 1):
            out = self(tokens[:, step:], out.normed[:, :-1], drafts, start=step - 1)
            outputs.append(out)
        return outputs

"""Qwen3-Next: embedding, decoder layers (three Gated DeltaNet, one attention, repeated), final norm, lm_head, MTP head.

    h = embed(tokens);  h = layer_i(h) for each i;  n = norm(h);  logits = lm_head(n) in fp32

Tensor names are those of the released checkpoints. Everything is causal, so right padding changes nothing before it.
`stepwise=True` lets every layer walk through the tokens one by one; see `Model.forward`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from qconvert_reference.cache import Cache, LayerState
from qconvert_reference.config import ModelConfig
from qconvert_reference.layer import DecoderLayer, LayerOutput
from qconvert_reference.linear import Load, Numerics, load_linear, load_tensor
from qconvert_reference.moe import RouterTrace
from qconvert_reference.mtp import MtpHead
from qconvert_reference.norm import rms_norm

# A checkpoint with this tensor has a multi-token-prediction head; config.json does not say so.
MTP_MARK = "mtp.fc.weight"


class ModelOutput(NamedTuple):
    """normed [B, T, H] behind the final norm; logits fp32 [B, T, V]; routes per layer (None for a dense one)."""

    normed: Tensor
    logits: Tensor
    routers: list[RouterTrace | None]


class Embedding:
    """Rows of model.embed_tokens, in the compute dtype."""

    def __init__(self, load: Load, numerics: Numerics) -> None:
        self.table = load_tensor(load, "model.embed_tokens.weight")
        self.dtype = numerics.compute_dtype

    def __call__(self, tokens: Tensor) -> Tensor:
        """tokens [B, T] -> [B, T, H]"""
        return F.embedding(tokens, self.table).to(self.dtype)


class Head:
    """Final norm and lm_head."""

    def __init__(self, config: ModelConfig, load: Load, numerics: Numerics) -> None:
        self.eps = config.rms_norm_eps
        self.norm = load_tensor(load, "model.norm.weight")
        name = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
        self.lm_head = load_linear(load, name, numerics)

    def finish(self, hidden: Tensor) -> Tensor:
        """The final norm, [B, T, H]."""
        return rms_norm(hidden, self.norm, self.eps)

    def logits(self, normed: Tensor) -> Tensor:
        """fp32 [B, T, V], for the trunk's output or the MTP head's."""
        return self.lm_head(normed).float()


class Model:
    """All layers resident. `mtp=False` for checkpoints without a multi-token-prediction head."""

    def __init__(self, config: ModelConfig, load: Load, numerics: Numerics, *, mtp: bool = True) -> None:
        self.config, self.numerics = config, numerics
        self.embed = Embedding(load, numerics)
        self.layers = [DecoderLayer(config, i, load, numerics, kind) for i, kind in enumerate(config.layer_types)]
        self.head = Head(config, load, numerics)
        self.mtp = MtpHead(config, load, numerics, self.embed) if mtp else None

    def finish(self, hidden: Tensor) -> Tensor:
        """The final norm, [B, T, H]."""
        return self.head.finish(hidden)

    def logits(self, normed: Tensor) -> Tensor:
        """fp32 [B, T, V]"""
        return self.head.logits(normed)

    def forward(self, tokens: Tensor, cache: Cache | None = None, *, stepwise: bool = False) -> ModelOutput:
        """tokens [B, T], behind what the cache has seen.

        `stepwise` gives bit for bit what T calls with one token each would give: a matrix product rounds differently
        with another number of rows, so tokens that are checked together would otherwise not be decided as they would be
        alone.
        """
        start = cache.length if cache is not None else 0
        hidden = self.embed(tokens)
        routers: list[RouterTrace | None] = []
        for i, layer in enumerate(self.layers):
            state = cache.layers[i] if cache is not None else None
            out = walk(layer, hidden, state, start) if stepwise else layer(hidden, state, start)
            hidden = out.hidden
            routers.append(out.router)
        if cache is not None:
            cache.length = start + tokens.shape[1]
        if not stepwise:
            normed = self.finish(hidden)
            return ModelOutput(normed, self.logits(normed), routers)
        steps = [self.finish(step) for step in _single(hidden)]
        return ModelOutput(torch.cat(steps, 1), torch.cat([self.logits(step) for step in steps], 1), routers)

    __call__ = forward


def _single(hidden: Tensor) -> list[Tensor]:
    """The tokens of [B, T, H] as T tensors [B, 1, H], each in its own memory, laid out as a single token would be."""
    return [hidden[:, t : t + 1].clone(memory_format=torch.contiguous_format) for t in range(hidden.shape[1])]


def walk(layer: DecoderLayer, hidden: Tensor, state: LayerState | None, start: int) -> LayerOutput:
    """One layer over its tokens one by one, the state carrying what came before."""
    outs = [layer(step, state, start + t) for t, step in enumerate(_single(hidden))]
    routers = [out.router for out in outs if out.router is not None]
    router = RouterTrace(*(torch.cat(parts, 1) for parts in zip(*routers, strict=True))) if routers else None
    return LayerOutput(torch.cat([out.hidden for out in outs], 1), router)

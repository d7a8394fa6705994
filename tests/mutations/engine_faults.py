"""Faults of whoever runs the files: the numbers on disk are right and the arithmetic is wrong.

Each takes an opened lane and changes what its layers compute; the lane has passed all checks by then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from qconvert_reference import attention, gated_delta_net, linear, moe
from qconvert_reference.cache import Cache, DeltaState
from qconvert_reference.lane import Lane
from qconvert_reference.layer import DecoderLayer
from qconvert_reference.models.qwen3_next import Model, ModelOutput
from qconvert_reference.moe import SparseMoe
from qconvert_reference.mtp import MtpHead, MtpOutput


class _While:
    """A layer that runs with one function of a module exchanged."""

    def __init__(self, layer: DecoderLayer, module: Any, name: str, instead: Callable[..., Any]) -> None:
        self.layer, self.exchange = layer, lambda: patch.object(module, name, instead)

    def __call__(self, *args: Any) -> Any:
        with self.exchange():
            return self.layer(*args)


def _exchange(lane: Lane, module: Any, name: str, instead: Callable[..., Any]) -> None:
    build = lane.layer
    lane.layer = lambda index: _While(build(index), module, name, instead)  # type: ignore[method-assign,assignment]


def _change_layers(lane: Lane, change: Callable[[DecoderLayer], None]) -> None:
    build = lane.layer

    def changed(index: int) -> DecoderLayer:
        layer = build(index)
        change(layer)
        return layer

    lane.layer = changed  # type: ignore[method-assign]


def drop_the_activation_scale(lane: Lane) -> None:
    """Inputs enter the product as codes, their scales forgotten."""

    def codes(x: Tensor, group: int = 128) -> Tensor:
        groups = x.float().unflatten(-1, (-1, group))
        return (groups / groups.abs().amax(-1, keepdim=True) * 448).to(torch.float8_e4m3fn).float().flatten(-2)

    _exchange(lane, linear, "round_activations", codes)


def one_activation_scale_for_all(lane: Lane) -> None:
    """One scale for the whole batch, where every token has its own."""

    def rounded(x: Tensor, group: int = 128) -> Tensor:
        scale = x.float().abs().max() / 448
        return (x.float() / scale).to(torch.float8_e4m3fn).float() * scale

    _exchange(lane, linear, "round_activations", rounded)


def wrong_rope_theta(lane: Lane) -> None:
    lane.config = replace(lane.config, rope=replace(lane.config.rope, theta=10_000.0))


def wrong_rotary_width(lane: Lane) -> None:
    """Half as many dimensions turned."""
    part = lane.config.rope.partial_rotary_factor / 2
    lane.config = replace(lane.config, rope=replace(lane.config.rope, partial_rotary_factor=part))


def no_norm_topk_prob(lane: Lane) -> None:
    lane.config = replace(lane.config, norm_topk_prob=False)


def one_expert_too_few(lane: Lane) -> None:
    lane.config = replace(lane.config, num_experts_per_tok=lane.config.num_experts_per_tok - 1)


def drop_the_shared_experts_gate(lane: Lane) -> None:
    """sigmoid(gate) taken for 1."""

    def change(layer: DecoderLayer) -> None:
        assert isinstance(layer.mlp, SparseMoe)
        layer.mlp.shared_expert_gate = lambda x: torch.full_like(x.x[..., :1], 1e4)  # type: ignore[assignment]

    _change_layers(lane, change)


def drop_the_attention_gate(lane: Lane) -> None:
    """The queries' gate taken for 1; `torch` is looked up in attention's module, where only the gate uses sigmoid."""

    class Torch:
        sigmoid = staticmethod(torch.ones_like)

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    _exchange(lane, attention, "torch", Torch())  # type: ignore[arg-type]


def plain_instead_of_zero_centred_norm(lane: Lane) -> None:
    """q and k normalised with w where it should be 1 + w."""
    right = attention.rms_norm
    _exchange(lane, attention, "rms_norm", lambda x, weight, eps: right(x, weight - 1, eps))


def no_l2_norm_of_keys(lane: Lane) -> None:
    _exchange(lane, gated_delta_net, "l2_norm", lambda x, eps=1e-6: x * x.shape[-1] ** -0.5)


def router_in_fp8(lane: Lane) -> None:
    """The router's logits rounded to e4m3."""
    right = moe.route

    def rounded(logits: Tensor, top_k: int, normalise: bool) -> Any:
        return right(logits.float().to(torch.float8_e4m3fn).float(), top_k, normalise)

    _exchange(lane, moe, "route", rounded)


class _PreNormHead(MtpHead):
    """Reads the trunk in front of its final norm. The head's own norm takes out the scale, so only the weights of the
    final norm, 1 + w, make the difference; they are divided out again."""

    final: Tensor

    def __call__(self, tokens_next: Tensor, hidden: Tensor, *more: Any, **named: Any) -> MtpOutput:
        return super().__call__(tokens_next, (hidden / (1 + self.final)).to(hidden.dtype), *more, **named)


def feed_the_head_before_the_norm(lane: Lane) -> None:
    build = lane.mtp

    def wrong() -> MtpHead | None:
        head = build()
        assert head is not None
        head.__class__ = _PreNormHead
        final = lane.load("model.norm.weight")
        assert isinstance(final, Tensor) and isinstance(head, _PreNormHead)
        head.final = final.float()
        return head

    lane.mtp = wrong  # type: ignore[method-assign]


def feed_the_head_the_token_before(lane: Lane) -> None:
    """The embedding of x_t instead of x_{t+1}."""
    build = lane.mtp

    def wrong() -> MtpHead | None:
        head = build()
        assert head is not None
        embed = head.embed
        head.embed = lambda tokens: embed(tokens.roll(1, 1))
        return head

    lane.mtp = wrong  # type: ignore[method-assign]


class _ForgetfulModel(Model):
    """Breaks what the loop takes back with, whenever drafts have been verified."""

    def forward(self, tokens: Tensor, cache: Cache | None = None, *, stepwise: bool = False) -> ModelOutput:
        out = super().forward(tokens, cache, stepwise=stepwise)
        if stepwise and cache is not None:
            self.forget(cache)
        return out

    def forget(self, cache: Cache) -> None:
        raise NotImplementedError


class _DeltaKept(_ForgetfulModel):
    def forget(self, cache: Cache) -> None:
        for state in cache.layers:
            if isinstance(state, DeltaState) and state.trail is not None:
                state.trail = dict.fromkeys(state.trail, (state.conv, state.recurrent))


class _DraftsKept(_ForgetfulModel):
    def forget(self, cache: Cache) -> None:
        cache.mtp.rollback = lambda length: None  # type: ignore[method-assign]


def _run_as(lane: Lane, kind: type[_ForgetfulModel]) -> None:
    build = lane.model

    def wrong() -> Model:
        model = build()
        model.__class__ = kind
        return model

    lane.model = wrong  # type: ignore[method-assign]


def keep_refused_drafts_in_the_delta_state(lane: Lane) -> None:
    """Keys and values are cut back, the state of the delta rule stays where the refused drafts left it."""
    _run_as(lane, _DeltaKept)


def keep_refused_drafts_in_the_heads_cache(lane: Lane) -> None:
    """The head goes on reading the keys and values of its own old drafts."""
    _run_as(lane, _DraftsKept)

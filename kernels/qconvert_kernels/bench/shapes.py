"""The sizes of Qwen3-Next-80B-A3B that products are timed at.

    hidden 2048; attention 16 query heads of 256 with as many gates, 2 key/value heads; Gated DeltaNet 16 key and 32
    value heads of 128; 512 experts of 512, ten a token, and a shared one of the same size

Engines fuse q, k, v and the two halves of an MLP, so those sizes are here as well as the single ones.
"""

from __future__ import annotations

from typing import NamedTuple

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 512, 1024, 4096, 8192)
QUICK_TOKENS = (1, 16, 128, 4096)


class Weight(NamedTuple):
    """A dense projection, y [M, N] = x [M, K] W^T."""

    name: str
    n: int
    k: int


class Experts(NamedTuple):
    """The routed experts of a layer: E of mlp H -> I -> H, `slots` of them for a token."""

    experts: int
    hidden: int
    intermediate: int
    slots: int


class Heads(NamedTuple):
    """The gated delta rule of a layer."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int


WEIGHTS = (
    Weight("in_proj_qkvz", 12288, 2048),
    Weight("qkv_proj", 9216, 2048),
    Weight("out_proj", 2048, 4096),
    Weight("shared gate_up", 1024, 2048),
    Weight("shared down", 2048, 512),
    Weight("square 8192", 8192, 8192),  # not the model's: where published figures of other kernels are
)
EXPERTS = Experts(512, 2048, 512, 10)
HEADS = Heads(16, 32, 128, 128)
HIDDEN = 2048

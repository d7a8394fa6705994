"""Partial rotary embedding, with YaRN.

The first D = head_dim * partial_rotary_factor dimensions of each head are rotated, pair k being dimensions (k, k +
D/2):

    f_k = theta^(-2k/D)                        k = 0 .. D/2-1
    (x_k, x_{k+D/2}) -> (x_k cos pf_k - x_{k+D/2} sin pf_k,  x_{k+D/2} cos pf_k + x_k sin pf_k)    at position p

YaRN slows the low frequencies down by `factor` and leaves the high ones, with a ramp between two dimensions:

    d(r)  = D ln(L0 / (2 pi r)) / (2 ln theta)             the pair that turns r times within L0 positions
    low   = floor d(beta_fast), high = ceil d(beta_slow)   (not rounded when truncate is false), both within [0, D-1]
    m_k   = clamp((k - low) / (high - low), 0, 1)
    f_k'  = f_k ((1 - m_k) + m_k / factor);  cos and sin both times attention_factor = 0.1 ln(factor) + 1

Angles are computed in fp32 and the rotation too; the result is rounded once.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qconvert_reference.config import RopeConfig


def rotary_dim(rope: RopeConfig, head_dim: int) -> int:
    """How many leading dimensions of a head are rotated."""
    return int(head_dim * rope.partial_rotary_factor)


def frequencies(rope: RopeConfig, head_dim: int) -> tuple[Tensor, float]:
    """Angular frequency per pair, fp32 [D/2], and the factor on cos and sin."""
    dim = rotary_dim(rope, head_dim)
    exponent = torch.arange(0, dim, 2, dtype=torch.float32) / dim  # [D/2]
    plain = 1.0 / (rope.theta**exponent)
    if rope.rope_type == "default":
        return plain, 1.0
    if rope.rope_type == "linear":
        return plain / rope.factor, 1.0
    slowed = _yarn_ramp(rope, dim)
    scale = rope.attention_factor
    if scale is None:
        scale = 0.1 * math.log(rope.factor) + 1.0 if rope.factor > 1 else 1.0
    return plain / rope.factor * slowed + plain * (1 - slowed), scale


def _yarn_ramp(rope: RopeConfig, dim: int) -> Tensor:
    """m_k: 0 where the frequency is kept, 1 where it is divided by the factor."""

    def pair_that_turns(times: float) -> float:
        return (
            dim * math.log(rope.original_max_position_embeddings / (times * 2 * math.pi)) / (2 * math.log(rope.theta))
        )

    low, high = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001  # a step instead of a division by zero
    pair = torch.arange(dim // 2, dtype=torch.float32)
    return ((pair - low) / (high - low)).clamp(0, 1)


class Rotary:
    """Rotation by position; the table of the last range is kept, since keys and queries ask for the same one."""

    def __init__(self, rope: RopeConfig, head_dim: int) -> None:
        self.frequencies, self.scale = frequencies(rope, head_dim)
        self._key: tuple[int, int, torch.device] | None = None
        self._table: tuple[Tensor, Tensor] | None = None

    def table(self, start: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos, sin [length, D/2] in fp32 for positions start .. start+length-1."""
        key = (start, length, device)
        if self._table is None or self._key != key:
            positions = torch.arange(start, start + length, dtype=torch.float32, device=device)
            angles = positions[:, None] * self.frequencies.to(device)  # [T, D/2]
            self._key, self._table = key, (angles.cos() * self.scale, angles.sin() * self.scale)
        return self._table

    def __call__(self, x: Tensor, start: int) -> Tensor:
        """Rotate x [B, heads, T, head_dim], whose first token stands at position `start`."""
        cos, sin = self.table(start, x.shape[-2], x.device)
        half = cos.shape[-1]
        first, second = x[..., :half].float(), x[..., half : 2 * half].float()
        rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
        return torch.cat((rotated.to(x.dtype), x[..., 2 * half :]), -1)

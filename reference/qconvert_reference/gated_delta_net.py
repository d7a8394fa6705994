"""Gated DeltaNet: the linear-attention block of three layers in four.

    in_proj_qkvz(x)    per key head: [q (dk) | k (dk) | v of its R value heads (R dv) | z of the same (R dv)]
    in_proj_ba(x)      per key head: [b of its R value heads | a of the same],   R = value heads / key heads
    c                  = silu(causal depthwise convolution of [all q | all k | all v]);  z, b, a do not pass through it
                         y_t = sum_i w_i c_{t - kernel + 1 + i}
    beta, g            = sigmoid(b),  -e^(A_log) softplus(a + dt_bias)
    q, k               = L2-normalised per head, q / sqrt(dk)
    o                  = gated delta rule (delta_rule.py)
    y                  = out_proj(gated RMSNorm(o, z)), per value head

Everything between the two projections stays in fp32 and is rounded once, at the gated norm.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qconvert_reference.cache import DeltaState
from qconvert_reference.config import ModelConfig
from qconvert_reference.delta_rule import chunked_delta_rule, recurrent_delta_rule
from qconvert_reference.kernels import fused_delta_rule
from qconvert_reference.linear import Load, Numerics, Shared, load_linear, load_tensor
from qconvert_reference.norm import gated_rms_norm, l2_norm

# Up to this many tokens the recurrence is quicker than a chunk of 64 that is mostly padding.
RECURRENT_LIMIT = 8
# Numbers of v that go through the rule at a time: with what is made of them they stay in a core's cache.
IN_CACHE = 1 << 19


def causal_conv(x: Tensor, weight: Tensor, before: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Depthwise convolution over time and SiLU, in fp32.

    x [B, T, C]; weight [C, 1, kernel]; before [B, kernel-1, C] are the inputs just before x (zeros at the beginning).
    Returns y [B, T, C] and the last kernel-1 inputs.
    """
    if before is None:
        before = x.new_zeros(x.shape[0], weight.shape[-1] - 1, x.shape[2])
    seen = torch.cat((before, x), 1)  # [B, kernel-1+T, C]
    if x.shape[1] <= RECURRENT_LIMIT:  # a handful of products, at a tenth of what a call of conv2d costs
        out = (seen.float().unfold(1, weight.shape[-1], 1) * weight.float()[:, 0]).sum(-1)
        return F.silu(out), seen[:, x.shape[1] :]
    # As an image [B, C, T, 1] with the channels innermost in memory: five times quicker on a CPU than conv1d.
    out = F.conv2d(seen.float()[:, :, None].permute(0, 3, 1, 2), weight.float()[..., None], groups=weight.shape[0])
    return F.silu(out[..., 0].mT), seen[:, x.shape[1] :]


class GatedDeltaNet:
    """One Gated DeltaNet block, its weights found under `prefix`."""

    def __init__(self, config: ModelConfig, prefix: str, load: Load, numerics: Numerics) -> None:
        self.config = config
        self.fused_rule = fused_delta_rule(numerics)
        self.in_proj_qkvz = load_linear(load, f"{prefix}.in_proj_qkvz.weight", numerics)
        self.in_proj_ba = load_linear(load, f"{prefix}.in_proj_ba.weight", numerics)
        self.out_proj = load_linear(load, f"{prefix}.out_proj.weight", numerics)
        self.conv1d = load_tensor(load, f"{prefix}.conv1d.weight")
        self.dt_bias = load_tensor(load, f"{prefix}.dt_bias")
        self.a_log = load_tensor(load, f"{prefix}.A_log")
        self.norm = load_tensor(load, f"{prefix}.norm.weight")

    def __call__(self, x: Tensor, state: DeltaState | None = None) -> Tensor:
        """x [B, T, H] -> y [B, T, H]; a state continues where it left off and is advanced."""
        mixed, z, beta, g = self._project(x)
        before = (state.conv, state.recurrent) if state is not None else (None, None)
        mixed, conv = causal_conv(mixed, self.conv1d, before[0])
        out, recurrent = self._rule(*self._heads(mixed), g, beta, before[1])  # [B, T, Hv, dv]
        if state is not None:
            state.advance(conv, recurrent, x.shape[1])
        return self.out_proj(gated_rms_norm(out, z, self.norm, self.config.rms_norm_eps).flatten(2))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The projections taken apart: [q | k | v] flat [B, T, C], z [B, T, Hv, dv], beta and g [B, T, Hv] in fp32."""
        config = self.config
        key_heads, key_dim = config.linear_num_key_heads, config.linear_key_head_dim
        group = config.linear_num_value_heads // key_heads
        values = group * config.linear_value_head_dim
        shared = Shared(x)
        per_head = self.in_proj_qkvz(shared).view(*x.shape[:2], key_heads, -1)  # [B, T, Hk, 2 dk + 2 R dv]
        q, k, v, z = torch.split(per_head, [key_dim, key_dim, values, values], -1)
        mixed = torch.cat((q.flatten(2), k.flatten(2), v.flatten(2)), -1)
        # Each [B, T, Hk, R].
        b, a = self.in_proj_ba(shared).float().view(*x.shape[:2], key_heads, 2 * group).chunk(2, -1)
        g = -self.a_log.float().exp() * F.softplus(a.flatten(2) + self.dt_bias.float())
        z = z.reshape(*x.shape[:2], config.linear_num_value_heads, config.linear_value_head_dim)
        return mixed, z, b.flatten(2).sigmoid(), g

    def _heads(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Behind the convolution: q, k [B, T, Hk, dk], v [B, T, Hv, dv]."""
        config = self.config
        keys = config.linear_num_key_heads * config.linear_key_head_dim
        q, k, v = torch.split(mixed, [keys, keys, mixed.shape[-1] - 2 * keys], -1)
        heads = (*mixed.shape[:2], -1, config.linear_key_head_dim)
        return q.reshape(heads), k.reshape(heads), v.reshape(*mixed.shape[:2], -1, config.linear_value_head_dim)

    def _rule(
        self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """y [B, T, Hv, dv] and the state behind, in one kernel or in torch."""
        if self.fused_rule is not None:
            return self.fused_rule(q, k, v, g, beta, state)
        q, k = l2_norm(q) * self.config.linear_key_head_dim**-0.5, l2_norm(k)
        if q.shape[1] <= RECURRENT_LIMIT:
            return recurrent_delta_rule(q, k, v, g, beta, state)
        together = max(1, IN_CACHE // v[0].numel())  # sequences
        found = []
        for at in range(0, v.shape[0], together):
            part = slice(at, at + together)
            before = None if state is None else state[part]
            found.append(chunked_delta_rule(q[part], k[part], v[part], g[part], beta[part], before))
        return torch.cat([y for y, _ in found]), torch.cat([after for _, after in found])

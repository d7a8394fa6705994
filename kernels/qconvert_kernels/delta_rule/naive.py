"""The specification of the gated delta rule, token by token, in plain torch; see the package for the equations."""

from __future__ import annotations

import torch
from torch import Tensor

L2_EPS = 1e-6


def normalise(x: Tensor) -> Tensor:
    """x / sqrt(sum of x^2 + 1e-6) over the last dimension"""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + L2_EPS)


def gated_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    state: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """y [B, T, Hv, dv] and the state [B, Hv, dk, dv], both in `dtype`."""
    group = v.shape[2] // k.shape[2]
    q, k = (normalise(x.to(dtype)).repeat_interleave(group, 2) for x in (q, k))  # [B, T, Hv, dk]
    q, v, g, beta = q * k.shape[3] ** -0.5, v.to(dtype), g.to(dtype), beta.to(dtype)
    if state is None:
        state = v.new_zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3])
    state, outputs = state.to(dtype), []
    for t in range(v.shape[1]):
        state = state * g[:, t].exp()[..., None, None]
        answer = (state * k[:, t, :, :, None]).sum(-2)  # S^T k: [B, Hv, dv]
        correction = beta[:, t, :, None] * (v[:, t] - answer)
        state = state + k[:, t, :, :, None] * correction[:, :, None, :]
        outputs.append((state * q[:, t, :, :, None]).sum(-2))
    return torch.stack(outputs, 1) if outputs else v, state

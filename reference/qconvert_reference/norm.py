"""The three normalisations of Qwen3-Next, all computed in fp32 and rounded once to the dtype of their input.

    zero-centred RMSNorm   y = x / sqrt(mean(x^2) + eps) * (1 + w)         w starts at 0; all norms but the next two
    gated RMSNorm          y = x / sqrt(mean(x^2) + eps) * w * silu(z)     behind the delta rule; w starts at 1
    L2 norm                y = x / sqrt(sum(x^2) + 1e-6)                   queries and keys of the delta rule

Engines differ in whether they round between the factors; one rounding at the end is the most exact of these choices.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

L2_EPS = 1e-6


def _scaled(x: Tensor, eps: float) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Zero-centred RMSNorm over the last dimension; x [..., D], weight [D]."""
    return (_scaled(x, eps) * (1.0 + weight.float())).to(x.dtype)


def gated_rms_norm(x: Tensor, gate: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Norm of x, then the gate; x and gate [..., D], weight [D]; rounded to the dtype of the gate."""
    return (_scaled(x, eps) * weight.float() * F.silu(gate.float())).to(gate.dtype)


def l2_norm(x: Tensor) -> Tensor:
    """Unit length over the last dimension, in fp32."""
    x = x.float()
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + L2_EPS)

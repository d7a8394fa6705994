"""The gated delta rule, per head, in fp32: a state S [d_k, d_v] that forgets, and corrects what it answers for a key.

Recurrent form, for each token (g <= 0 the log of the decay, b in (0, 1) the strength of the correction):

    S <- e^g S;    S <- S + k (b (v - S^T k))^T;    o = S^T q

Chunked form, the same numbers for C tokens at once, with G_i = g_1 + ... + g_i inside the chunk and D_ij = e^(G_i -
G_j) for i >= j:

    A = strictly lower part of (b K) K^T * D            what token i's correction owes to the earlier ones of its chunk
    U = (I + A)^-1 (b V),   W = (I + A)^-1 (b K e^G)    a triangular system, solved for all chunks at once
    N = U - W S                                         the corrections, given the state S before the chunk
    O = (Q e^G) S + (lower part of Q K^T * D) N
    S <- e^(G_C) S + (K e^(G_C - G))^T N

Only the lines N, O and S run chunk after chunk. Exponents are masked before exp: above the diagonal they are
positive and would overflow. A tail is padded with g = b = 0 and k = 0, which leaves the state as it is.

q and k come per key head and are shared by the value heads of their group; both are expected normalised, q scaled.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 32  # tokens; engines take 64, on a CPU the smaller triangles win
# What has faded to e^-40, a 10^-17th, is nothing beside whatever came later. Its products would be subnormal numbers,
# each of which costs a CPU a hundred ordinary ones: heads that forget within a token or two halved a layer's speed.
LEAST = -40.0


def recurrent_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Token by token. q, k [B, T, Hk, dk]; v [B, T, Hv, dv]; g, beta [B, T, Hv]; state [B, Hv, dk, dv]; all fp32."""
    group = v.shape[2] // k.shape[2]
    q, k = q.repeat_interleave(group, 2), k.repeat_interleave(group, 2)  # [B, T, Hv, dk]
    if state is None:
        state = v.new_zeros(v.shape[0], v.shape[2], k.shape[3], v.shape[3])
    outputs = []
    for t in range(v.shape[1]):
        state = state * g[:, t].exp()[..., None, None]
        answer = (k[:, t, :, None] @ state)[..., 0, :]  # S^T k: [B, Hv, dv]
        correction = beta[:, t, :, None] * (v[:, t] - answer)
        state = torch.addcmul(state, k[:, t, :, :, None], correction[:, :, None, :])
        outputs.append((q[:, t, :, None] @ state)[..., 0, :])
    return torch.stack(outputs, 1), state


def chunked_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor | None = None, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Chunk by chunk; arguments and results as in `recurrent_delta_rule`."""
    (batch, tokens, key_heads, key_dim), (heads, value_dim) = k.shape, v.shape[2:]
    q, k = (_chunks(x, chunk, key_heads) for x in (q, k))  # [n, B, Hk, 1, C, dk]
    v, g, beta = (_chunks(x, chunk, key_heads) for x in (v, g[..., None], beta[..., None]))  # [n, B, Hk, R, C, dv or 1]
    total = g.cumsum(-2)  # G
    grown = _faded(total)
    upper = torch.ones(chunk, chunk, dtype=torch.bool, device=v.device).triu(1)
    decay = _faded((total - total.mT).masked_fill_(upper, float("-inf")))  # D: [n, B, Hk, R, C, C]
    reads = q @ k.mT * decay
    owed = k @ k.mT * beta * decay  # A on and below the diagonal; the solver takes the diagonal to be 1
    one = torch.eye(chunk, dtype=owed.dtype, device=owed.device).expand_as(owed)
    inverse = torch.linalg.solve_triangular(owed, one, upper=False, unitriangular=True) * beta.mT
    inverse = torch.where(decay > 0, inverse, 0.0)  # of the size of the decay, and nothing where that is nothing
    last = total[..., -1:, :]
    # From here on the heads of all sequences are one dimension: [n, B Hv, C, d].
    flat = (v.shape[0], batch * heads, chunk, -1)
    updates = (inverse @ v).view(flat)  # U
    reach = (inverse * grown.mT @ k).view(flat)  # W
    k_left, q_grown, reads = (k * _faded(last - total)).view(flat).mT, (q * grown).view(flat), reads.view(flat)
    faded = _faded(last).view(v.shape[0], batch * heads, 1, 1)
    state = v.new_zeros(batch * heads, key_dim, value_dim) if state is None else state.flatten(0, 1)
    outputs = []
    for i in range(v.shape[0]):
        corrections = torch.baddbmm(updates[i], reach[i], state, alpha=-1)  # N
        outputs.append(torch.baddbmm(q_grown[i] @ state, reads[i], corrections))
        state = torch.baddbmm(faded[i] * state, k_left[i], corrections)
    out = torch.stack(outputs, 1).view(batch, heads, -1, value_dim)[:, :, :tokens]
    return out.transpose(1, 2), state.view(batch, heads, key_dim, value_dim)


def _faded(exponents: Tensor) -> Tensor:
    """e^x for x <= 0; below LEAST nothing."""
    return F.threshold(exponents, LEAST, float("-inf")).exp_()


def _chunks(x: Tensor, chunk: int, key_heads: int) -> Tensor:
    """[B, T, H, d] -> [n, B, Hk, H/Hk, C, d], the tail padded with zeros."""
    batch, tokens, heads, dim = x.shape
    x = F.pad(x, (0, 0, 0, 0, 0, -tokens % chunk))
    x = x.reshape(batch, -1, chunk, key_heads, heads // key_heads, dim)
    return x.permute(1, 0, 3, 4, 2, 5).contiguous()

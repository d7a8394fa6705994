"""The gated delta rule in fp32, per value head: a state S [dk, dv] that forgets and corrects what it answers for a key.

    q', k' = q / |q| / sqrt(dk),  k / |k|            |x| = sqrt(sum of x^2 + 1e-6)
    S <- e^g S;    S <- S + k' (b (v - S^T k'))^T;    o = S^T q'           g <= 0, b in [0, 1]

    y, state = gated_delta_rule(q, k, v, g, beta, state)

q, k [B, T, Hk, dk] and v [B, T, Hv, dv] are bf16 or fp32, as they come out of the convolution; a key head serves
Hv / Hk value heads. g, beta [B, T, Hv] and the state [B, Hv, dk, dv] are fp32. `naive` is the specification. A few
tokens go one after the other (`kernels.recurrent`, the state stays in registers), more go in chunks of 64 on the tensor
core (`kernels.prepare` for all chunks at once, then `kernels.scan` from chunk to chunk).

Products of the chunked form are three TF32 products each, fp32 but for the last two or three bits. A single one keeps
11 bits, and the two forms would drift apart in the state they hand each other.

Left out: sequences of different lengths in one batch, gradients, heads wider than 256.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qconvert_kernels.errors import BadInput
from qconvert_kernels.launch import check, check_devices, load_kernels, on

FLOATS = (torch.bfloat16, torch.float32)
WIDEST = 256
RECURRENT_LIMIT = 16  # tokens up to which one after the other is taken for quicker than a chunk that is mostly padding
BLOCK_V = 32  # columns of the state a program keeps: 4 x 32 programs a sequence, an H200 runs 132 at a time
CHUNK = 64
MOST_TOKENS = 16_384  # at a time, of all sequences: `prepare` writes 74 kB for each where 32 heads have 128 x 128
# What the compiler fits into registers without spilling: parts of dk multiplied at a time, warps, stages.
PREPARE, SCAN = (32, 8, 2), (64, 4, 2)

__all__ = ["gated_delta_rule"]


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """y [B, T, Hv, dv] in the dtype of v, and the state after the last token; `state` itself is left as it is."""
    batch, tokens, heads, key_dim, value_dim = _check(q, k, v, g, beta, state)
    most = max(CHUNK, MOST_TOKENS // max(1, batch) // CHUNK * CHUNK)
    if tokens > most:
        pieces = []
        for start in range(0, tokens, most):
            some = slice(start, start + most)
            y, state = gated_delta_rule(q[:, some], k[:, some], v[:, some], g[:, some], beta[:, some], state)
            pieces.append(y)
        assert state is not None
        return torch.cat(pieces, 1), state
    y = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    end = torch.empty(batch, heads, key_dim, value_dim, dtype=torch.float32, device=v.device)
    if state is None:
        state = torch.zeros_like(end)
    if not tokens or not batch:
        return y, state.clone()
    parts = [x.contiguous() for x in (q, k, v, g, beta, state)]
    with on(v.device):
        (_recurrent if tokens <= RECURRENT_LIMIT else _chunked)(parts, y, end)
    return y, end


def _check(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor | None
) -> tuple[int, int, int, int, int]:
    check("q", q, (-1, -1, -1, -1), FLOATS)
    batch, tokens, key_heads, key_dim = q.shape
    check("k", k, (batch, tokens, key_heads, key_dim), (q.dtype,))
    check("v", v, (batch, tokens, -1, -1), (q.dtype,))
    heads, value_dim = v.shape[2:]
    if key_heads == 0 or heads % key_heads:
        raise BadInput(f"v: expected a multiple of {key_heads} heads, found {heads}")
    if not 0 < key_dim <= WIDEST or not value_dim:
        raise BadInput(f"q, v: expected heads of 1 to {WIDEST} numbers, found {key_dim} and {value_dim}")
    for name, x in (("g", g), ("beta", beta)):
        check(name, x, (batch, tokens, heads), (torch.float32,))
    if state is not None:
        check("state", state, (batch, heads, key_dim, value_dim), (torch.float32,))
    check_devices(q=q, k=k, v=v, g=g, beta=beta, state=state)
    return batch, tokens, heads, key_dim, value_dim


def _power(size: int) -> int:
    """Rounded up to a power of two, 16 at least: what a tile can be."""
    return max(16, 1 << (size - 1).bit_length())


def _recurrent(parts: list[Tensor], y: Tensor, end: Tensor) -> None:
    batch, tokens, heads, value_dim = y.shape
    block = min(BLOCK_V, _power(value_dim))
    load_kernels("delta_rule.kernels").recurrent[(batch * heads, -(-value_dim // block))](
        *parts, y, end, tokens,
        HEADS=heads, KEY_HEADS=parts[1].shape[2], DK=end.shape[2], DV=value_dim,
        BLOCK_K=_power(end.shape[2]), BLOCK_V=block,
    )  # fmt: skip


def _chunked(parts: list[Tensor], y: Tensor, end: Tensor) -> None:
    q, k, v, g, beta, state = parts
    batch, tokens, heads, value_dim = y.shape
    key_dim, kernels = end.shape[2], load_kernels("delta_rule.kernels")
    chunks, block = -(-tokens // CHUNK), min(BLOCK_V, _power(value_dim))

    def new(*shape: int) -> Tensor:
        return torch.empty(batch * heads * chunks, *shape, device=v.device)

    updates, reads, fade = new(CHUNK, value_dim), new(CHUNK, CHUNK), new()
    reach, grown, left = (new(CHUNK, key_dim) for _ in range(3))
    sizes = {"HEADS": heads, "DK": key_dim, "DV": value_dim, "C": CHUNK}
    part, warps, stages = PREPARE
    kernels.prepare[(chunks, batch * heads)](
        q, k, v, g, beta, updates, reach, grown, left, reads, fade, tokens, chunks,
        KEY_HEADS=k.shape[2], BLOCK_K=_power(key_dim), PART=part, num_warps=warps, num_stages=stages, **sizes,
    )  # fmt: skip
    part, warps, stages = SCAN
    kernels.scan[(-(-value_dim // block), batch * heads)](
        state, updates, reach, grown, left, reads, fade, y, end, tokens, chunks,
        BLOCK_V=block, PART=part, PARTS=-(-key_dim // part), num_warps=warps, num_stages=stages, **sizes,
    )  # fmt: skip

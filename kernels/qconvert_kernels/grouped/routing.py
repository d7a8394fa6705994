"""From routes to tiles: which rows a grouped product multiplies with which expert's weight.

A router gives each of T tokens k experts: experts int [T, k]. Pair p = token * k + slot. A grouped product works on
blocks of `tile` rows with one expert each:

    pairs     int32 [B * tile]   the pair in each row: expert by expert, rising inside an expert (stable); each expert's
                                 run is filled up to a multiple of the tile with P = T * k, which is no pair
    experts   int32 [B]          the expert of each block; -1 for blocks left over at the end
    distinct  int32 [1]          experts that have any pair, the number by which bandwidth is to be judged

B is the most blocks that T, k and E can need, so that shapes depend on nothing the GPU has computed: no
synchronisation, and a captured CUDA graph stays right for any routes. Experts outside 0..E-1 get no block; `combine`
makes their tokens NaN.

`layout` is torch operations only, about two dozen launches; `products.layout` is the same in two.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NO_EXPERT = -1


class Layout(NamedTuple):
    """Rows of all blocks; fields as in the module's description."""

    pairs: Tensor
    experts: Tensor
    distinct: Tensor

    @property
    def tile(self) -> int:
        """Rows of a block."""
        return len(self.pairs) // max(1, len(self.experts))


def most_blocks(pairs: int, experts: int, tile: int) -> int:
    """The most blocks any routes can need.

    n experts with c_i >= 1 pairs need sum of 1 + (c_i - 1) // tile <= n + (P - n) // tile blocks, which grows with n;
    all but one expert with a single pair attain it.
    """
    most = min(pairs, experts)
    return most + (pairs - most) // tile


def naive_layout(experts: Tensor, num_experts: int, tile: int) -> Layout:
    """The specification: one expert after the other, pair by pair."""
    routes = experts.flatten().tolist()
    rows: list[int] = []
    blocks: list[int] = []
    for expert in range(num_experts):
        mine = [pair for pair, chosen in enumerate(routes) if chosen == expert]
        mine += [len(routes)] * (-len(mine) % tile)
        rows += mine
        blocks += [expert] * (len(mine) // tile)
    distinct = len(set(blocks))
    left = most_blocks(len(routes), num_experts, tile) - len(blocks)
    rows += [len(routes)] * (left * tile)
    blocks += [NO_EXPERT] * left
    made = (torch.tensor(part, dtype=torch.int32, device=experts.device) for part in (rows, blocks, [distinct]))
    return Layout(*made)


def layout(experts: Tensor, num_experts: int, tile: int) -> Layout:
    """The same without loops or synchronisation."""
    flat, device = experts.flatten(), experts.device
    total = len(flat)
    blocks = most_blocks(total, num_experts, tile)
    by_expert, order = flat.sort(stable=True)  # [P]
    numbers = torch.arange(num_experts + 1, dtype=flat.dtype, device=device)
    begins = torch.searchsorted(by_expert, numbers)  # [E + 1], where each expert's run begins in `order`
    counts = begins.diff()
    needed = (counts + tile - 1) // tile  # [E] blocks of each expert
    ends = needed.cumsum(0)
    index = torch.arange(blocks, device=device)
    owner = torch.searchsorted(ends, index, right=True)  # [B]; E for blocks left over
    known = owner.clamp_max(num_experts - 1)
    first = (index - (ends - needed)[known]) * tile  # [B] place of the block's first row in its expert's run
    place = first[:, None] + torch.arange(tile, device=device)  # [B, tile]
    real = (place < counts[known, None]) & (owner < num_experts)[:, None]
    source = (begins[known, None] + place).clamp_max(max(0, total - 1))
    pairs = torch.where(real, order[source], total) if total else place
    return Layout(
        pairs.flatten().int(),
        torch.where(owner < num_experts, owner, NO_EXPERT).int(),
        (counts > 0).sum(dtype=torch.int32)[None],
    )

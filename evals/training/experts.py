"""All experts of a layer at once, for training: the reference's loop over experts as three batched products.

The chosen (token, expert) pairs are laid out expert by expert in a padded block [E, C, H], C the largest count, so that
gate, up and down are one `bmm` each over the stacked weights; rows of padding are zeros and are never gathered back.
The numbers are those of `SparseMoe._run_experts` up to the order of addition (tests/evals/test_training.py holds them
together); a step makes a tenth of the calls.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qconvert_reference.moe import SparseMoe


def run_experts(moe: SparseMoe, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    """x [N, H], experts and weights [N, k] -> fp32 [N, H]."""
    chosen = experts.flatten()  # [N k]
    order = chosen.argsort(stable=True)
    counts = chosen.bincount(minlength=len(moe.experts))
    capacity = int(counts.max())
    begin = counts.cumsum(0) - counts
    rank = torch.arange(len(chosen), device=x.device) - begin[chosen[order]]
    place = torch.empty_like(chosen)
    place[order] = chosen[order] * capacity + rank  # where each pair lies in the block
    block = x.new_zeros(len(moe.experts) * capacity, x.shape[1])
    block = block.index_copy(0, place[order], x.index_select(0, order // experts.shape[1]))
    block = block.view(len(moe.experts), capacity, -1)  # [E, C, H]
    gate, up, down = (torch.stack([getattr(e, name).weight() for e in moe.experts]).transpose(1, 2) for name in NAMES)
    out = torch.bmm(F.silu(torch.bmm(block, gate)) * torch.bmm(block, up), down)  # [E, C, H]
    found = out.flatten(0, 1).index_select(0, place).view(*experts.shape, -1)  # [N, k, H]
    return (found.float() * weights[..., None]).sum(1)


NAMES = ("gate_proj", "up_proj", "down_proj")

"""Mixture of experts with a shared expert, and the dense MLP of layers that have none.

    p        = softmax(gate x) over ALL experts, in fp32
    top      = the k of largest logit, the lower number first among equals;  w_e = p_e / sum of the k
               (norm_topk_prob) or p_e
    mlp(x)   = down(silu(gate_proj x) * up_proj x)                                     one such MLP per expert
    y        = sum_{e in top} w_e expert_e(x) + sigmoid(shared_expert_gate x) * shared_expert(x)

Logits in BF16 tie often, and what `topk` takes of equal ones depends on the device; with the lower number the choice is
a function of the logits alone. There is no routing bias, no groups and no scaling factor. The sum over experts runs in
fp32, in the order of the expert numbers, so a token's result does not depend on which tokens stand beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from qconvert_reference.config import ModelConfig
from qconvert_reference.kernels import GroupedExperts, group_experts
from qconvert_reference.linear import Linear, Load, Numerics, Shared, load_linear
from qconvert_reference.recording import record_routes


class RouterTrace(NamedTuple):
    """What the router decided: logits [B, T, E] fp32; experts [B, T, k] by falling weight; weights [B, T, k] fp32."""

    logits: Tensor
    experts: Tensor
    weights: Tensor


def route(logits: Tensor, top_k: int, normalise: bool) -> RouterTrace:
    """Choose the experts from router logits [..., E]."""
    logits = logits.float()
    experts = top_experts(logits, top_k)
    weights = logits.softmax(-1).gather(-1, experts)
    if normalise:
        weights = weights / weights.sum(-1, keepdim=True)
    return RouterTrace(logits, experts, weights)


def top_experts(logits: Tensor, count: int) -> Tensor:
    """fp32 logits [..., E] -> the `count` largest by falling logit, then rising number, int64 [..., count].

    One integer holds both, the logit's bits in the order of its value above the number counted from the end: no two
    are equal, so that `topk` has no choice.
    """
    bits = (logits + 0.0).view(torch.int32)  # -0 becomes 0
    rising = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long() << 32  # sign and magnitude -> two's complement
    last = logits.shape[-1] - 1
    keys = rising | torch.arange(last, -1, -1, device=logits.device)
    return last - (keys.topk(count, -1).values & 0xFFFFFFFF)


class Mlp:
    """down(silu(gate x) * up x), its weights found under `prefix`."""

    def __init__(self, prefix: str, load: Load, numerics: Numerics) -> None:
        self.gate_proj = load_linear(load, f"{prefix}.gate_proj.weight", numerics)
        self.up_proj = load_linear(load, f"{prefix}.up_proj.weight", numerics)
        self.down_proj = load_linear(load, f"{prefix}.down_proj.weight", numerics)

    def __call__(self, x: Tensor | Shared) -> Tensor:
        return self.down_proj(self.hidden(x))

    def hidden(self, x: Tensor | Shared) -> Tensor:
        """x [..., H] -> silu(gate x) * up x [..., I], the input of `down_proj`."""
        shared = x if isinstance(x, Shared) else Shared(x)
        return F.silu(self.gate_proj(shared)) * self.up_proj(shared)

    @property
    def linears(self) -> tuple[Linear, Linear, Linear]:
        """gate_proj, up_proj, down_proj."""
        return self.gate_proj, self.up_proj, self.down_proj


class SparseMoe:
    """Router, experts and shared expert of one layer."""

    def __init__(self, config: ModelConfig, prefix: str, load: Load, numerics: Numerics) -> None:
        self.top_k, self.normalise = config.num_experts_per_tok, config.norm_topk_prob
        self.gate = load_linear(load, f"{prefix}.gate.weight", numerics)
        names = [f"{prefix}.experts.{e}" for e in range(config.num_experts)]
        self.grouped = _group(names, load, numerics)
        self.experts = [] if self.grouped is not None else [Mlp(name, load, numerics) for name in names]
        self.shared_expert = Mlp(f"{prefix}.shared_expert", load, numerics)
        self.shared_expert_gate = load_linear(load, f"{prefix}.shared_expert_gate.weight", numerics)

    def __call__(self, x: Tensor) -> tuple[Tensor, RouterTrace]:
        """x [B, T, H] -> y [B, T, H] and the routes taken."""
        entering = Shared(x)
        trace = route(self.gate(entering), self.top_k, self.normalise)
        record_routes(x, trace.experts)
        flat = x.flatten(0, 1)  # [N, H]
        run = self._run_one if flat.shape[0] == 1 and self.grouped is None else self._run_experts
        routed = run(flat, trace.experts.flatten(0, 1), trace.weights.flatten(0, 1))
        shared = torch.sigmoid(self.shared_expert_gate(entering)) * self.shared_expert(entering)
        return routed.view_as(x).to(x.dtype) + shared, trace

    def _run_experts(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """Each chosen expert once, over all its tokens; x [N, H], experts and weights [N, k] -> fp32 [N, H].

        In Triton all of them at once, and BF16.
        """
        if self.grouped is not None:
            return self.grouped(x, experts, weights)
        order = experts.flatten().argsort(stable=True)  # pairs (token, choice), expert by expert
        counts = experts.flatten().bincount(minlength=len(self.experts)).cpu().tolist()
        tokens, scale = order // self.top_k, weights.flatten()[order, None]
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        begin = 0
        for expert, count in enumerate(counts):
            if count:
                rows = tokens[begin : begin + count]
                found = self.experts[expert](x.index_select(0, rows)).float() * scale[begin : begin + count]
                total.index_add_(0, rows, found)
                begin += count
        return total

    def _run_one(self, x: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """`_run_experts` for a single token, without sorting and gathering: the same products in the same order."""
        total = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
        shared, chosen = Shared(x), experts[0].cpu().tolist()
        for choice in sorted(range(self.top_k), key=chosen.__getitem__):
            total.add_(self.experts[chosen[choice]](shared).float() * weights[:, choice, None])
        return total


def _group(names: list[str], load: Load, numerics: Numerics) -> GroupedExperts | None:
    """One product for all experts where kernels are wanted and fit."""
    if numerics.kernels == "torch":
        return None
    parts = ("gate_proj", "up_proj", "down_proj")
    return group_experts([[load(f"{name}.{part}.weight") for part in parts] for name in names], numerics)

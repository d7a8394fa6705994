"""The optimizer: Muon for the matrices of the layers, AdamW for everything else, one schedule for both.

    Muon     M <- mu M + G;   U = orthogonalised(G + mu M);   W <- (1 - lr wd) W - lr sqrt(max(1, rows / columns)) U
    AdamW    as usual; embedding, lm_head, router, norms, convolution and the scalars of the delta rule

"Orthogonalised" keeps the singular vectors and sets the singular values to about one, by five steps of a Newton-Schulz
iteration with an odd quintic polynomial, in BF16. Matrices of one shape go through it as one batch: 255 expert matrices
cost three batched products a step.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

MUON_RATE, MUON_DECAY, MOMENTUM = 0.02, 0.1, 0.95
ADAM_RATE, ADAM_BETAS = 3e-3, (0.9, 0.95)
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # the published coefficients: steep at zero, so five steps suffice
BY_ADAM = ("embed_tokens", "lm_head", "mlp.gate.", "shared_expert_gate", "in_proj_ba", "conv1d")


def learning_rate(progress: float, step: int, warmup: int = 100, flat_until: float = 0.35) -> float:
    """Share of the peak rate: warm-up by steps, then flat, then linearly to zero; progress in [0, 1] is the clock's."""
    decay = min(1.0, (1.0 - progress) / (1.0 - flat_until))
    return max(0.0, min(1.0, (step + 1) / warmup) * decay)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """[n, rows, columns] -> the same singular vectors with singular values near one."""
    a, b, c = NEWTON_SCHULZ
    x: Tensor = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.transpose(1, 2) if tall else x


class Optimizer:
    """Both, over parameters by name."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        groups: dict[tuple[int, int], list[Tensor]] = {}
        others = []
        for name, parameter in parameters.items():
            if parameter.ndim == 2 and not any(part in name for part in BY_ADAM):
                groups.setdefault((parameter.shape[0], parameter.shape[1]), []).append(parameter)
            else:
                others.append(parameter)
        self._groups = [(group, torch.zeros(len(group), *shape)) for shape, group in groups.items()]
        self._adam = torch.optim.AdamW(others, ADAM_RATE, ADAM_BETAS, eps=1e-10, weight_decay=0.0)

    @torch.no_grad()
    def step(self, share: float) -> None:
        """One update at this share of the peak rate; gradients are cleared."""
        for settings in self._adam.param_groups:
            settings["lr"] = ADAM_RATE * share
        self._adam.step()
        self._adam.zero_grad()
        for group, momentum in self._groups:
            gradient = torch.stack([torch.zeros_like(p) if p.grad is None else p.grad for p in group])
            momentum.mul_(MOMENTUM).add_(gradient)
            update = orthogonalise(gradient.add_(momentum, alpha=MOMENTUM)).float()
            rows, columns = update.shape[1:]
            torch._foreach_mul_(group, 1 - MUON_RATE * share * MUON_DECAY)
            torch._foreach_add_(group, list(update), alpha=-MUON_RATE * share * max(1.0, rows / columns) ** 0.5)
            for parameter in group:
                parameter.grad = None

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"adam": self._adam.state_dict(), "muon": [momentum for _, momentum in self._groups]}

    def restore(self, state: dict[str, Any]) -> None:
        """Back to a checkpoint."""
        self._adam.load_state_dict(state["adam"])
        for (_, momentum), saved in zip(self._groups, state["muon"], strict=True):
            momentum.copy_(saved)

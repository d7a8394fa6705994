"""What the model card states: held-out loss, entropy of single tokens, and acceptance of the drafts, by domain.

    loss               mean of -log p(next token), in nats
    unigram entropy    of the held-out tokens themselves: what the best possible guess without context would cost
    acceptance1        share of positions where draft and trunk name the same most likely token, the text being given
    acceptance2        share of positions where the second draft, made from the first, agrees too

Everything is teacher-forced. `qconvert compare` measures the same with intervals; this is the short form for a card.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from qconvert_reference.models.qwen3_next import Model

ROWS = 4
Found: TypeAlias = "tuple[str, list[int], Tensor, Tensor, Tensor]"


def measure(
    model: Model, documents: list[tuple[str, list[int]]], fixed_length: int | None = None
) -> dict[str, dict[str, float]]:
    """Domain ("all" is every document) -> loss, unigram_entropy, acceptance1, acceptance2, tokens.

    Documents are (domain, tokens), read from their beginning; with `fixed_length` no further than that, and always
    padded to it, which spares a compiled model the learning of new shapes.
    """
    found: list[Found] = []
    for begin in range(0, len(documents), ROWS):
        group = documents[begin : begin + ROWS]
        length = fixed_length or max(len(tokens) for _, tokens in group)
        rows = torch.zeros(ROWS, length + 2, dtype=torch.long)  # right padding changes nothing before it
        for row, (_, tokens) in zip(rows, group, strict=False):
            row[: min(len(tokens), length)] = torch.tensor(tokens[:length])
        losses, first, second = _numbers(model, rows)
        for i, (domain, tokens) in enumerate(group):
            own = slice(min(len(tokens), length) - 1)  # the last token has no next one
            found.append((domain, tokens[:length], losses[i, own], first[i, own], second[i, own]))
    domains = ["all", *dict.fromkeys(domain for domain, _ in documents)]
    return {name: _summary([f for f in found if name in ("all", f[0])]) for name in domains}


@torch.no_grad()
def _numbers(model: Model, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each position: loss of the next token; whether the first and the second draft agree with the trunk."""
    length = rows.shape[1] - 2
    out = model(rows[:, :length])
    losses = F.cross_entropy(out.logits.transpose(1, 2), rows[:, 1 : length + 1], reduction="none")
    assert model.mtp is not None
    hidden, agreements = out.normed, []
    for step in (1, 2):
        draft = model.mtp(rows[:, step : length + step], hidden)
        hidden = draft.normed
        same = model.logits(hidden)[:, :-step].argmax(-1) == out.logits[:, step:].argmax(-1)
        agreements.append(F.pad(same.float(), (0, step)))
    return losses, agreements[0], agreements[1]


def _summary(found: list[Found]) -> dict[str, float]:
    losses = torch.cat([f[2] for f in found])
    first = torch.cat([f[3][:-1] for f in found])
    second = torch.cat([(f[3] * f[4])[:-2] for f in found])  # accepted only behind an accepted first draft
    counts = torch.bincount(torch.cat([torch.tensor(f[1]) for f in found])).float()
    shares = counts[counts > 0] / counts.sum()
    return {
        "loss": losses.mean().item(),
        "unigram_entropy": -(shares * shares.log()).sum().item(),
        "acceptance1": first.mean().item(),
        "acceptance2": second.mean().item(),
        "tokens": float(counts.sum()),
    }

"""How a served model turns logits into a distribution: temperature, top-k, top-p, as generation_config.json sets them.

    z = logits / temperature
    top-k    keep the k largest z (and what equals the k-th)
    top-p    of what is left, in falling order, keep each token in front of which less than p of the mass lies
    softmax  over what is kept

in the order in which transformers, vLLM and SGLang apply them. Keys that are absent mean 1, all tokens, all mass.
Temperature 0 is greedy decoding: all mass on the largest logit, the first where several are.

Left out: min_p and penalties, which generation_config.json may set as well; `unread` names those that a file sets, so
that a report can say so. `do_sample` is not asked: engines take the numbers whatever it says.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qconvert.errors import UserError

GENERATION_CONFIG = "generation_config.json"
# Keys that would change the distribution further, with the values that change nothing.
NEUTRAL: dict[str, float] = {"min_p": 0.0, "repetition_penalty": 1.0, "typical_p": 1.0, "epsilon_cutoff": 0.0}


@dataclass(frozen=True)
class Sampling:
    """temperature 1, top_k 0 and top_p 1 leave a distribution as it is."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    unread: tuple[str, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether the softmax of the logits is all there is to it."""
        return (self.temperature, self.top_k, self.top_p) == (1.0, 0, 1.0)

    def record(self) -> dict[str, Any]:
        """For results.json."""
        return {**asdict(self), "unread": list(self.unread)}

    def probabilities(self, logits: Tensor) -> Tensor:
        """[..., V] -> fp64 [..., V]"""
        if self.temperature == 0:
            return torch.zeros_like(logits, dtype=torch.float64).scatter_(-1, logits.argmax(-1, keepdim=True), 1.0)
        scaled = logits.double() / self.temperature
        if 0 < self.top_k < scaled.shape[-1]:
            least = scaled.topk(self.top_k, dim=-1).values[..., -1:]
            scaled = scaled.masked_fill(scaled < least, -math.inf)
        if self.top_p < 1:
            ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
            mass = ordered.softmax(-1)
            beyond = mass.cumsum(-1) - mass >= self.top_p
            beyond[..., 0] = False
            scaled = scaled.masked_fill(torch.zeros_like(beyond).scatter_(-1, order, beyond), -math.inf)
        return scaled.softmax(-1)


PLAIN = Sampling()


def read_sampling(folder: Path) -> Sampling:
    """What the checkpoint's generation_config.json asks for; the plain softmax without one."""
    path = folder / GENERATION_CONFIG
    if not path.is_file():
        return PLAIN
    try:
        given = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError("this file cannot be read", where=str(path), expected="JSON", found=str(error)) from error
    if not isinstance(given, dict):
        raise UserError(
            "this file cannot be read", where=str(path), expected="a JSON object", found=type(given).__name__
        )
    return Sampling(
        temperature=_number(given, "temperature", 1.0, path, 0.0, math.inf),
        top_k=max(0, int(_number(given, "top_k", 0, path, -1, math.inf, whole=True))),  # -1 is vLLM's "all"
        top_p=_number(given, "top_p", 1.0, path, 0.0, 1.0),
        unread=tuple(key for key, neutral in NEUTRAL.items() if given.get(key, neutral) not in (None, neutral)),
    )


def _number(
    given: dict[str, Any], key: str, default: float, path: Path, low: float, high: float, whole: bool = False
) -> float:
    value = given.get(key)
    if value is None:
        return default
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high or (whole and value != int(value)):
        expected = f"{'a whole number' if whole else 'a number'} from {low:g} to {high:g}"
        raise UserError(f"{key} is no setting of a sampler", where=str(path), expected=expected, found=repr(value))
    return float(value)

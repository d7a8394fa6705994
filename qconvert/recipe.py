"""Recipes: which tensor becomes what.

A recipe is an ordered list of rules, each a glob pattern on tensor names and either the name of a scheme or "keep".
The first rule that matches decides. A tensor that no rule covers is an error: new tensors are never dropped or
guessed about. `*` matches dots, too, so "*.self_attn.q_proj.weight" covers every layer.
"""

import fnmatch
import functools
import re
from dataclasses import dataclass

from qconvert.errors import UserError

KEEP = "keep"


@dataclass(frozen=True)
class Rule:
    """Tensors whose names match `pattern` become `action`: a scheme's name, or "keep"."""

    pattern: str
    action: str


@dataclass(frozen=True)
class Recipe:
    """Named, ordered rules."""

    name: str
    rules: tuple[Rule, ...]

    def action(self, tensor: str) -> str:
        """What becomes of a tensor."""
        for rule in self.rules:
            if _compiled(rule.pattern).match(tensor):
                return rule.action
        raise UserError(
            f"tensor {tensor} is not covered by the recipe {self.name!r}",
            expected="one rule for every tensor",
            fix=f"add a rule for it to the recipe, or check whether {tensor!r} belongs into this checkpoint",
        )


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))

"""Recipes: which tensor becomes what.

A recipe is an ordered list of rules, each a glob pattern on tensor names and either the name of a scheme or "keep".
The first rule that matches decides. A tensor that no rule covers is an error: new tensors are never dropped or
guessed about. `*` matches dots, too, so "*.self_attn.q_proj.weight" covers every layer.

One's own recipe is a TOML file; "quantize" stands for the scheme that the conversion was asked for.

    name = "experts of the first layers only"       # optional
    [[rules]]
    match = "model.layers.[0-7].mlp.experts.*.weight"
    action = "quantize"                             # or a scheme's name, or "keep"
    [[rules]]
    match = "*"
    action = "keep"
"""

import fnmatch
import functools
import re
import tomllib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from qconvert.errors import UserError

KEEP = "keep"
QUANTIZE = "quantize"


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

    @property
    def schemes(self) -> tuple[str, ...]:
        """Every scheme that a rule names."""
        return tuple(dict.fromkeys(rule.action for rule in self.rules if rule.action != KEEP))

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


def load_recipe(path: str | Path, scheme: str, known: Collection[str]) -> Recipe:
    """A recipe from a TOML file for conversions to `scheme`; `known` are all schemes."""
    file = Path(path)
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
        rules = tuple(Rule(rule["match"], rule["action"]) for rule in content["rules"])
        unknown = {key for rule in content["rules"] for key in rule} - {"match", "action"} | content.keys() - {
            "name",
            "rules",
        }
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the recipe {file} cannot be read",
            expected='[[rules]] with match = "PATTERN" and action = "quantize" or "keep"',
            found=f"{type(error).__name__}: {error}",
        ) from error
    if unknown:
        raise UserError(f"the recipe {file} has an unknown key {min(unknown)!r}", expected="name, rules, match, action")
    for rule in rules:
        if rule.action not in (KEEP, QUANTIZE, *known):
            raise UserError(
                f"the recipe {file} has an unknown action {rule.action!r} for {rule.pattern!r}",
                expected=f"{QUANTIZE} (to {scheme}, the scheme of this conversion), {KEEP}, {', '.join(known)}",
            )
    chosen = tuple(Rule(rule.pattern, scheme if rule.action == QUANTIZE else rule.action) for rule in rules)
    return Recipe(str(content.get("name", file.name)), chosen)


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))

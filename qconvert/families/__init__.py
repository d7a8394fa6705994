"""Model families by `model_type`. A family is there when its file is there: `qwen3_next.py` for "qwen3_next"."""

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

from qconvert.errors import UserError
from qconvert.families.family import CacheBytes, Family

__all__ = ["CacheBytes", "Family", "family_names", "family_of"]


def family_names() -> list[str]:
    """All known model types, read off the files of this package."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "family")


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config.json; refuses an unknown model_type and unsupported settings by name."""
    model_type = config.get("model_type")
    if model_type not in family_names():
        raise UserError(
            f"unknown model_type {model_type!r} in config.json",
            expected=", ".join(family_names()),
            fix="qconvert converts only the model families that it knows tensor by tensor",
        )
    family: Family = importlib.import_module(f"qconvert.families.{model_type}").FAMILY
    family.refuse(config)
    return family

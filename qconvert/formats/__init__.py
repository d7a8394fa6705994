"""File formats by name. A format is there when its file is there; `quantization_config` tells which one it is."""

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qconvert.checkpoint import Checkpoint
from qconvert.errors import UserError
from qconvert.formats.format import CONFIG_KEY, Format, Layout, StoredWeight, UnreadableNumbers
from qconvert.formats.weights import Weights

__all__ = [
    "CONFIG_KEY",
    "Format",
    "Layout",
    "StoredWeight",
    "UnreadableNumbers",
    "Weights",
    "format_names",
    "format_of",
    "get_format",
    "open_weights",
]

NO_FORMATS = ("config_groups", "exclusions", "format", "int4", "weights", "words")  # modules that formats share


def format_names() -> list[str]:
    """The public names of all formats, read off the files of this package."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name.replace("_", "-") for name in modules if name not in NO_FORMATS)


def get_format(name: str) -> Format:
    """The format of that name."""
    if name not in format_names():
        raise UserError(
            f"unknown format {name!r}", expected=", ".join(format_names()), fix="give one of these as --format"
        )
    found: Format = importlib.import_module(f"qconvert.formats.{name.replace('-', '_')}").FORMAT
    return found


def format_of(config: Mapping[str, Any]) -> Format | None:
    """The format of a checkpoint's config.json; None for a plain, unquantized checkpoint."""
    block = config.get(CONFIG_KEY)
    if block is None:
        return None
    for name in format_names():
        found = get_format(name).opened(block) if isinstance(block, dict) else None
        if found is not None:
            return found
    method = block.get("quant_method") if isinstance(block, dict) else block
    raise UserError(f"unknown quant_method {method!r} in config.json", expected=", ".join(format_names()))


def open_weights(source: str | Path | Checkpoint) -> Weights:
    """A checkpoint of any known format by its logical weights."""
    checkpoint = source if isinstance(source, Checkpoint) else Checkpoint.open(source)
    return Weights(checkpoint, format_of(checkpoint.config))

"""What an inspection says about a checkpoint, as plain data.

As JSON:  {"source", "model_type", "format", "metadata": "tensors" | "config",
           "now": {"tensors", "parameters", "bytes"}, "schemes": {scheme: the same}, "kinds": [...], "cache": {...},
           "warnings": [{"engine", "text"}], "notes": [text]}

Parameters are those of the model: the scales of a quantized folder count as bytes and as tensors, never as parameters.
"""

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Totals:
    """Sums over all tensors of a folder, on disk."""

    tensors: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Kind:
    """All tensors that play the same role, e.g. every expert's gate_proj."""

    name: str
    shapes: tuple[tuple[int, ...], ...]  # distinct ones; nearly always one
    tensors: int
    parameters: int
    bytes: int  # as they are, scales included
    schemes: dict[str, int]  # bytes under each scheme's default recipe, scales included


@dataclass(frozen=True)
class CachePlan:
    """What serving needs beside the weights."""

    bytes_per_token: int  # keys and values of all attention layers
    bytes_per_sequence: int  # recurrent and convolution state, whatever the length
    longest: int  # tokens of the longest sequence that the config allows


@dataclass(frozen=True)
class EngineWarning:
    """Something that an engine would do wrong with this folder, or with what is made of it."""

    engine: str
    text: str


@dataclass(frozen=True)
class InspectReport:
    """Everything `qconvert inspect` prints."""

    source: str
    model_type: str
    format: str
    metadata: str  # "tensors": the headers of the files; "config": config.json alone
    now: Totals
    schemes: dict[str, Totals]
    kinds: list[Kind]
    cache: CachePlan
    warnings: list[EngineWarning] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self)

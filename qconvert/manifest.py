"""`qconvert.json`: what a folder was made of and by what.

    schema_version, qconvert, operation, recipe {name, scheme, scales, format, rules, method?, calibration?},
    source {repository?, revision?, files {name: {bytes, sha256}}},
    output {files {name: {bytes, sha256}}},            every file of the folder but this one
    counts {tensors_in, tensors_out, kept, quantized, dequantized, repacked, bytes_in, bytes_out, shards},
    tensors {methods, kinds, worst, fallbacks?, few_tokens?},   a summary of qconvert_tensors.csv
    warnings, notes, run {started, wall_seconds, workers, device, source, python, torch}

Everything but `run` is a function of the source and the recipe; what differs from run to run stands there alone.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from qconvert.checkpoint import MANIFEST
from qconvert.errors import UserError

SCHEMA_VERSION = 2  # 1 had no `tensors`


@dataclass(frozen=True)
class Manifest:
    """The record as it stands in the file."""

    qconvert: str
    operation: str
    recipe: Mapping[str, Any]
    source: Mapping[str, Any]
    output: Mapping[str, Any]
    counts: Mapping[str, int]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    run: Mapping[str, Any]
    tensors: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def to_text(self) -> str:
        """JSON, one item a line."""
        record = asdict(self)
        return json.dumps({"schema_version": record.pop("schema_version"), **record}, indent=2) + "\n"

    @classmethod
    def load(cls, folder: str | Path) -> "Manifest | None":
        """The manifest of a folder, None if it has none. Refuses one that a newer version wrote."""
        path = Path(folder) / MANIFEST
        if not path.is_file():
            return None
        try:
            record = json.loads(path.read_bytes())
            if record["schema_version"] > SCHEMA_VERSION:
                raise UserError(
                    f"{path} was written by a newer qconvert", found=record["qconvert"], fix="update qconvert"
                )
            return cls(**record)
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} cannot be read", expected="a manifest of qconvert", found=str(error)) from error

"""The table of compiled kernels as a file: JSON, one line a case, so that a change reads well in a diff."""

from __future__ import annotations

import json
from dataclasses import asdict

from qconvert_kernels.compiled import Compiled


def render(version: str, made: dict[str, Compiled]) -> str:
    """The text of the file; `version` is that of Triton."""
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(asdict(result))}" for name, result in made.items())
    return f'{{\n  "triton": {json.dumps(version)},\n  "kernels": {{\n{lines}\n  }}\n}}\n'


def parse(text: str) -> tuple[str, dict[str, Compiled]]:
    """Version of Triton and the cases by name."""
    raw = json.loads(text)
    return raw["triton"], {name: Compiled(**fields) for name, fields in raw["kernels"].items()}

"""The weights of a checkpoint by their logical names: from the headers of its files, or from config.json alone.

From a config alone the family's whole inventory is assumed, in the type that the config names. Qwen3-Next's config
has no key for the multi-token-prediction head, so the head is assumed too, and the report says so.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from qconvert.checkpoint import TYPE_CODES, Checkpoint, TensorSpec
from qconvert.families import family_of
from qconvert.schemes import Scheme
from qconvert.verification.stored import Stored


@dataclass(frozen=True)
class Contents:
    """What is there now. `types` are of the tensors with the weights' names; `unknown` ones are not the family's."""

    config: Mapping[str, Any]
    metadata: str  # "tensors" or "config"
    format: str
    shapes: dict[str, tuple[int, ...]]
    types: dict[str, str]
    now: dict[str, tuple[int, int]]  # tensors and bytes on disk, scales included
    quantized: dict[str, Scheme]
    stored: Stored | None  # the folder as it was read; None from a config alone
    unknown: frozenset[str] = frozenset()
    powers_of_two: bool = False  # all scales that were looked at
    notes: list[str] = field(default_factory=list)

    def parameters(self, weight: str) -> int:
        """Number of elements of a weight."""
        return math.prod(self.shapes[weight])


def contents_of_config(config: Mapping[str, Any]) -> Contents:
    """What a model with this config would hold, unquantized."""
    family = family_of(config)
    shapes = family.inventory(config)
    dtype = config_type(config)
    notes = [f"from config.json alone: every tensor of {family.model_type} is assumed, as {dtype}"]
    if any(name.startswith(family.mtp_prefix) for name in shapes):
        head = f"a multi-token-prediction head ({family.mtp_prefix}*)"
        notes.append(f"config.json does not tell whether there is {head}: assumed to be there")
    if "quantization_config" in config:
        notes.append(
            "config.json describes a quantized folder; without its tensors the sizes are those of the original"
        )
    now = {name: (1, TensorSpec(name, dtype, shape).nbytes) for name, shape in shapes.items()}
    return Contents(config, "config", dtype, dict(shapes), dict.fromkeys(shapes, dtype), now, {}, None, notes=notes)


def contents_of_folder(checkpoint: Checkpoint) -> Contents:
    """What the headers say. Weights whose parts do not fit together count as what lies on the disk."""
    stored = Stored.read(checkpoint)
    tensors = checkpoint.tensors
    parts_of = {name: [tensors[part] for part in weight.parts.values()] for name, weight in stored.weights.items()}
    parts = {part.name for parts in parts_of.values() for part in parts}
    order = {name: position for position, name in enumerate(stored.inventory)}
    there = [*parts_of, *(name for name in tensors if name not in parts)]
    names = sorted(there, key=lambda name: order.get(name, len(order)))
    types = {name: parts_of[name][0].dtype if name in parts_of else tensors[name].dtype for name in names}
    plain = sorted({types[name] for name in stored.kept})
    schemes = sorted({scheme.name for scheme in stored.quantized.values()})
    left_out = checkpoint.left_out_files()
    return Contents(
        config=checkpoint.config,
        metadata="tensors",
        format=" + ".join(schemes + plain),
        shapes={name: stored.weights[name].shape if name in parts_of else tensors[name].shape for name in names},
        types=types,
        now={name: _size(parts_of[name] if name in parts_of else [tensors[name]]) for name in names},
        quantized=stored.quantized,
        stored=stored,
        unknown=frozenset((*stored.unexpected, *stored.broken)),
        powers_of_two=_powers_of_two(stored),
        notes=[f"weights in other containers are not looked at: {', '.join(left_out)}"] if left_out else [],
    )


def _size(parts: list[Any]) -> tuple[int, int]:
    return len(parts), sum(part.nbytes for part in parts)


def config_type(config: Mapping[str, Any]) -> str:
    """The safetensors code of `torch_dtype` (older files) or `dtype`; BF16 when neither says."""
    named = getattr(torch, str(config.get("torch_dtype") or config.get("dtype") or "bfloat16"), None)
    return TYPE_CODES.get(named, "BF16") if isinstance(named, torch.dtype) else "BF16"


def _powers_of_two(stored: Stored) -> bool:
    """Whether the scales of the first quantized weight are. One weight has dozens; chance does not make them all so."""
    for name in stored.quantized:
        scales = stored.checkpoint.read(stored.parts(name)["scales"]).float()
        return bool((torch.frexp(scales)[0] == 0.5).all())
    return False

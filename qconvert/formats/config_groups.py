r"""`config_groups` of a compressed-tensors config: which modules have which numbers.

    config_groups: {name: {targets, format, weights {num_bits, type, symmetric, strategy, ...}, input_activations}}

A target is a module's full path, `re:` and a pattern matched from the start of a path, or the name of a class. Paths
and patterns go before classes, groups in their order; `ignore` goes before all of them. The one class that we know is
Linear, which every quantized module is. A folder with one group says Linear; one with several gives each patterns that
match its own modules and no other quantized one.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from qconvert.errors import UserError
from qconvert.formats.exclusions import regex_test, shortest_runs
from qconvert.formats.int4 import BITS, PREFIX, group_size_in
from qconvert.schemes import Scheme

PACKED, FLOAT, MIXED = "pack-quantized", "float-quantized", "mixed-precision"
PATTERN = "re:"
LINEAR = "Linear"
BLOCK_SCHEME = "fp8-block128"
FP8_WEIGHTS = {
    "num_bits": 8, "type": "float", "symmetric": True, "strategy": "block", "block_structure": [128, 128],
    "dynamic": False,
}  # fmt: skip
FP8_ACTIVATIONS = {
    "num_bits": 8, "type": "float", "symmetric": True, "strategy": "group", "group_size": 128, "dynamic": True,
}  # fmt: skip
# One scale for all inputs of a token, in FP8, made while the engine runs.
TOKEN_ACTIVATIONS = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}


@dataclass(frozen=True)
class Group:
    """One group: the scheme of its weights, and what its inputs become."""

    targets: tuple[str, ...]
    scheme: str
    group_size: int = 0  # of INT4
    symmetric: bool = True
    activations: Mapping[str, Any] | None = None

    def names(self, module: str) -> bool:
        """Whether a path or a pattern is meant for the module."""
        return any(target_test(target)(module) for target in self.targets)


def target_test(entry: str) -> Any:
    """A test of module paths for a target or an entry of `ignore`."""
    if entry.startswith(PATTERN):
        return regex_test(entry.removeprefix(PATTERN))
    return lambda module: module == entry


def read_groups(block: Mapping[str, Any]) -> tuple[Group, ...]:
    """All groups; refuses numbers other than INT4 by groups and FP8 by blocks."""
    return tuple(_group(raw) for raw in (block.get("config_groups") or {}).values())


def group_of(groups: Collection[Group], module: str) -> Group | None:
    """The group that a module belongs to."""
    named = (group for group in groups if group.names(module))
    whole = (group for group in groups if LINEAR in group.targets)
    return next(named, None) or next(whole, None)


def groups_block(
    converted: Mapping[str, Scheme], kept: Collection[str], int4_activations: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The `quantization_config` for modules converted, each with its scheme, and modules kept."""
    schemes = list({scheme.name: scheme for scheme in converted.values()}.values())
    groups = {}
    for number, scheme in enumerate(schemes):
        targets = [LINEAR] if len(schemes) == 1 else _targets(scheme.name, converted)
        groups[f"group_{number}"] = group_block(scheme, targets, int4_activations)
    formats = sorted({str(group["format"]) for group in groups.values()})
    return {
        "config_groups": groups,
        "format": formats[0] if len(formats) == 1 else MIXED,
        "global_compression_ratio": None,
        "ignore": [PATTERN + run.pattern for run in shortest_runs(kept, list(converted))],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    }


def group_block(scheme: Scheme, targets: list[str], int4_activations: Mapping[str, Any] | None) -> dict[str, Any]:
    """One group, in compressed-tensors' own words."""
    weights: Mapping[str, Any] = FP8_WEIGHTS
    if scheme.name != BLOCK_SCHEME:
        size = int(scheme.name.removeprefix(PREFIX))
        symmetric = "zeros" not in scheme.layout((8, size))
        weights = {
            "num_bits": BITS, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": size,
            "dynamic": False,
        }  # fmt: skip
    fp8 = weights is FP8_WEIGHTS
    return {
        "format": FLOAT if fp8 else PACKED,
        "input_activations": FP8_ACTIVATIONS if fp8 else int4_activations,
        "output_activations": None,
        "targets": targets,
        "weights": dict(weights),
    }


def _targets(scheme: str, converted: Mapping[str, Scheme]) -> list[str]:
    own = [module for module, other in converted.items() if other.name == scheme]
    others = [module for module, other in converted.items() if other.name != scheme]
    return [PATTERN + run.pattern for run in shortest_runs(own, others)]


def _group(raw: Mapping[str, Any]) -> Group:
    weights, targets = raw.get("weights") or {}, tuple(raw.get("targets") or ())
    activations = raw.get("input_activations") or None
    if (weights.get("num_bits"), weights.get("type")) != (BITS, "int"):
        _check(weights, {key: (value,) for key, value in FP8_WEIGHTS.items() if key != "dynamic"})
        return Group(targets, BLOCK_SCHEME, activations=activations)
    _check(weights, {"strategy": ("group",), "actorder": (None, "weight", "static")})
    size = group_size_in(weights, "group_size")
    return Group(targets, f"{PREFIX}{size}", size, bool(weights.get("symmetric", True)), activations)


def _check(weights: Mapping[str, Any], expected: Mapping[str, tuple[Any, ...]]) -> None:
    for key, allowed in expected.items():
        if weights.get(key) not in allowed:
            raise UserError(
                f"this kind of compressed-tensors is not supported: {key} of the weights",
                expected=" or ".join(map(repr, allowed)),
                found=repr(weights.get(key)),
            )

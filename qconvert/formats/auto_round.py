"""`quant_method: auto-round`, packing "auto_round:auto_gptq": AutoRound's own config around the tensors of GPTQ v1.

`extra_config` maps a module path, or a regular expression that engines search for in it, to other settings; 16 bits
mean not quantized. `block_name_to_quantize` names the lists of layers that are quantized at all: what is in none of
them is not, unless `extra_config` gives it other bits. Only read: "auto_round:auto_awq", AWQ's tensors under this
config, and "auto_round" (or "auto_round:gptqmodel"), GPTQ's tensors with zero points as they are, which AutoRound
writes for asymmetric weights. Left out: AutoRound's other packings.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from qconvert.formats.awq import Awq
from qconvert.formats.exclusions import covered, regex_test, shortest_runs
from qconvert.formats.gptq import HEAD, Gptq
from qconvert.formats.int4 import BITS, check_config, check_overrides, group_size_in
from qconvert.schemes import Scheme

PACKING = "auto_round:auto_gptq"
AWQ_PACKING = "auto_round:auto_awq"
PLAIN_ZEROS = ("auto_round", "auto_round:gptqmodel")
BLOCKS = ("block_name_to_quantize", "to_quant_block_names")
NOT_QUANTIZED = {"bits": 16, "data_type": "float"}


@dataclass(frozen=True)
class AutoRound(Gptq):
    """The format."""

    name: ClassVar[str] = "auto-round"

    def opened(self, block: Mapping[str, Any]) -> "AutoRound | AutoRoundAwq | None":  # type: ignore[override]
        """4-bit integers in GPTQ's packing, or in AWQ's."""
        if block.get("quant_method") not in ("auto-round", "intel/auto-round"):
            return None
        check_config(
            block, {"bits": (BITS,), "data_type": ("int",), "packing_format": (PACKING, AWQ_PACKING, *PLAIN_ZEROS)}
        )
        rules = (block.get("extra_config") or {}).items()
        check_overrides(block, "extra_config", {entry: own for entry, own in rules if own.get("bits") != 16})
        group, symmetric = group_size_in(block, "group_size"), bool(block.get("sym", True))
        if block.get("packing_format") == AWQ_PACKING:
            return AutoRoundAwq(group, symmetric)
        shift = 0 if block.get("packing_format") in PLAIN_ZEROS else 1
        return replace(self, group_size=group, symmetric=symmetric, shift=shift)

    def config_block(self, scheme: Scheme, kept: Collection[str], converted: Collection[str] = ()) -> dict[str, Any]:
        """As AutoRound writes it."""
        own = self.configured(scheme)
        lists = dict.fromkeys(match.group() for module in converted if (match := re.match(r"[^\d]+(?=\.\d)", module)))
        return {
            "bits": BITS,
            "block_name_to_quantize": ",".join(lists),
            "data_type": "int",
            "extra_config": {run.pattern: NOT_QUANTIZED for run in shortest_runs(kept, converted)},
            "group_size": own.group_size,
            "packing_format": PACKING,
            "quant_method": "auto-round",
            "sym": own.symmetric,
        }

    def excluded(self, block: Mapping[str, Any], modules: Collection[str]) -> dict[str, set[str]]:
        """Entries with 16 bits, and what is outside the blocks."""
        return _excluded(block, modules)

    def unsayable(self, block: Mapping[str, Any]) -> list[str]:
        """Quantized activations."""
        return _unsayable(block)

    def guessed(self, block: Mapping[str, Any], modules: Collection[str]) -> set[str]:
        """Engines go by the entries and blocks alone."""
        return set()


@dataclass(frozen=True)
class AutoRoundAwq(Awq):
    """A folder with the other packing."""

    name: ClassVar[str] = "auto-round"

    def excluded(self, block: Mapping[str, Any], modules: Collection[str]) -> dict[str, set[str]]:
        """The config is AutoRound's."""
        return _excluded(block, modules)

    def unsayable(self, block: Mapping[str, Any]) -> list[str]:
        """Quantized activations."""
        return _unsayable(block)

    def guessed(self, block: Mapping[str, Any], modules: Collection[str]) -> set[str]:
        """Engines go by the entries and blocks alone."""
        return set()


def _unsayable(block: Mapping[str, Any]) -> list[str]:
    bits = block.get("act_bits")
    return [] if bits is None or bits >= 16 else [f"act_bits {bits}"]


def _excluded(block: Mapping[str, Any], modules: Collection[str]) -> dict[str, set[str]]:
    """Without blocks, only the output layer is left alone."""
    bits = {entry: own.get("bits") for entry, own in (block.get("extra_config") or {}).items()}
    found = covered({entry: _test(entry) for entry in bits if bits[entry] == 16}, modules)
    named = next((block[key] for key in BLOCKS if block.get(key)), ())
    blocks = tuple(named.split(",") if isinstance(named, str) else named)
    outside = {module for module in modules if not module.startswith(blocks)} if blocks else {HEAD} & set(modules)
    other = [_test(entry) for entry in bits if bits[entry] not in (None, 16)]
    outside = {module for module in outside if not any(test(module) for test in other)}
    return found | ({f"{BLOCKS[0]}: {','.join(blocks)}": outside} if outside else {})


def _test(entry: str) -> Callable[[str], bool]:
    """A path counts as it is, anything with a special character as a regular expression."""
    if not set(entry) & set(r"*+?^$()[]{}|\\"):
        return lambda module: module == entry
    return regex_test(entry, anywhere=True)


FORMAT = AutoRound()

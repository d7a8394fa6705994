"""`quant_method: auto-round`, packing "auto_round:auto_gptq": AutoRound's own config around the tensors of GPTQ v1.

`extra_config` maps a module path, or a regular expression that engines search for in it, to other settings; 16 bits
mean not quantized. `block_name_to_quantize` names the lists of layers that are quantized at all. The packing
"auto_round:auto_awq", AWQ's tensors under this config, is only read. Left out: AutoRound's other packings.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from qconvert.formats.awq import Awq
from qconvert.formats.exclusions import covered, regex_test, shortest_runs
from qconvert.formats.gptq import Gptq
from qconvert.formats.int4 import BITS, check_config, group_size_in
from qconvert.schemes import Scheme

PACKING = "auto_round:auto_gptq"
AWQ_PACKING = "auto_round:auto_awq"
NOT_QUANTIZED = {"bits": 16, "data_type": "float"}


@dataclass(frozen=True)
class AutoRound(Gptq):
    """The format."""

    name: ClassVar[str] = "auto-round"

    def opened(self, block: Mapping[str, Any]) -> "AutoRound | AutoRoundAwq | None":  # type: ignore[override]
        """4-bit integers in GPTQ's packing, or in AWQ's."""
        if block.get("quant_method") not in ("auto-round", "intel/auto-round"):
            return None
        check_config(block, {"bits": (BITS,), "data_type": ("int",), "packing_format": (PACKING, AWQ_PACKING)})
        group, symmetric = group_size_in(block, "group_size"), bool(block.get("sym", True))
        if block.get("packing_format") == AWQ_PACKING:
            return AutoRoundAwq(group, symmetric)
        return replace(self, group_size=group, symmetric=symmetric)

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
        """Entries with 16 bits."""
        return _excluded(block, modules)


@dataclass(frozen=True)
class AutoRoundAwq(Awq):
    """A folder with the other packing."""

    name: ClassVar[str] = "auto-round"

    def excluded(self, block: Mapping[str, Any], modules: Collection[str]) -> dict[str, set[str]]:
        """The config is AutoRound's."""
        return _excluded(block, modules)


def _excluded(block: Mapping[str, Any], modules: Collection[str]) -> dict[str, set[str]]:
    entries = [entry for entry, own in (block.get("extra_config") or {}).items() if own.get("bits") == 16]
    return covered({entry: _test(entry) for entry in entries}, modules)


def _test(entry: str) -> Callable[[str], bool]:
    """A path counts as it is, anything with a special character as a regular expression."""
    if not set(entry) & set(r"*+?^$()[]{}|\\"):
        return lambda module: module == entry
    return regex_test(entry, anywhere=True)


FORMAT = AutoRound()

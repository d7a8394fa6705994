"""What the converter must know of a model family: names, shapes, what belongs together, and what it cannot handle."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Protocol

from qconvert.recipe import Rule


class CacheBytes(NamedTuple):
    """What engines keep in memory for the sequences that they serve."""

    per_token: int  # keys and values of all attention layers
    per_sequence: int  # states that do not grow with the length


class Family(Protocol):
    """One `model_type` of config.json."""

    @property
    def model_type(self) -> str:
        """The `model_type` that this family handles."""
        ...

    @property
    def mtp_prefix(self) -> str:
        """Prefix of the multi-token-prediction head, which a checkpoint may lack as a whole."""
        ...

    def refuse(self, config: Mapping[str, Any]) -> None:
        """Raise a UserError that names a setting we do not handle."""
        ...

    def warnings(self, config: Mapping[str, Any]) -> list[str]:
        """What engines will do wrong with this config.json."""
        ...

    def inventory(self, config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """Every tensor and its shape, the multi-token-prediction head included, in reading order."""
        ...

    def place(self, name: str) -> tuple[int, str]:
        """Where a token meets this tensor on its way through the model, for sorting, and a word for it ("layer 3")."""
        ...

    def kind(self, name: str) -> str:
        """The tensor's name without its layer and expert numbers and without ".weight"."""
        ...

    def default_rules(self, scheme: str) -> tuple[Rule, ...]:
        """The rules of the recipe "default" for a scheme."""
        ...

    def linear_rules(self, scheme: str) -> tuple[Rule, ...]:
        """The rules of the recipe "all-linears": everything that engines can load quantized."""
        ...

    def mixed_rules(self, experts: str, others: str) -> tuple[Rule, ...]:
        """The rules of the recipe "mixed": routed experts in one scheme, other projections in another."""
        ...

    def unloadable(self, name: str) -> str | None:
        """Why engines cannot load this tensor quantized; None if they can."""
        ...

    def fused_group(self, name: str) -> str | None:
        """Tensors of one group are merged by the engines and must have the same precision."""
        ...

    def is_skip_listed(self, name: str) -> bool:
        """Whether a kept tensor's module belongs into the list of modules not converted."""
        ...

    def cache_bytes(self, config: Mapping[str, Any]) -> CacheBytes:
        """Memory for serving beside the weights, in the engines' default types."""
        ...

    def precision_warnings(
        self, config: Mapping[str, Any], weights: Collection[str], quantized: Mapping[str, str]
    ) -> list[tuple[str, str]]:
        """(engine, what goes wrong) for a choice of quantized weights (name: scheme) among all that it cannot serve."""
        ...

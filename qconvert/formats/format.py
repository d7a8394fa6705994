"""What every file format offers: where a quantized weight's parts lie, and what config.json says about them."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from qconvert.schemes import Scheme

CONFIG_KEY = "quantization_config"  # of config.json


class Format(Protocol):
    """How engines want quantized weights on disk."""

    @property
    def name(self) -> str:
        """Public name, as given to --format."""
        ...

    def owns(self, config: Mapping[str, Any]) -> bool:
        """Whether this `quantization_config` is of this format. Raises UserError for a variant that we cannot read."""
        ...

    def part_names(self, weight: str) -> dict[str, str]:
        """Part ("codes", "scales") of a quantized weight to the tensor's name on disk."""
        ...

    def quantized_weights(self, types: Mapping[str, str]) -> dict[str, Scheme]:
        """From all tensors' names and types on disk, the logical names of the quantized weights and their schemes."""
        ...

    def config_block(self, scheme: Scheme, not_converted: Iterable[str]) -> dict[str, Any]:
        """The `quantization_config` for config.json; `not_converted` are module paths."""
        ...

    def not_converted(self, config: Mapping[str, Any]) -> list[str]:
        """The module paths that a `quantization_config` excludes from quantization."""
        ...

"""`w4afp8`: the files of compressed-tensors' INT4, and engines told to quantize the inputs to FP8 as well (W4A8).

Weights are packed as in `compressed_tensors`; `input_activations` of the group says FP8 E4M3 with one scale a token,
made while the engine runs. vLLM has kernels for symmetric groups of 128 on Hopper and later; at load it requantizes the
scales to FP8 times one fp32 number an output channel, which moves weights by up to 2^-4 of their size.

Left out: the layout that SGLang calls w4afp8, which needs calibrated static scales and cannot exclude modules.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from qconvert.errors import UserError
from qconvert.formats.compressed_tensors import CompressedTensors, is_w4a8
from qconvert.formats.config_groups import TOKEN_ACTIVATIONS, Group, groups_block
from qconvert.formats.int4 import is_symmetric
from qconvert.schemes import Scheme

WEIGHTS = "int4-g128"
STEP = 256  # of both dimensions of an expert, on each GPU


@dataclass(frozen=True)
class W4AFp8(CompressedTensors):
    """compressed-tensors with token-wise FP8 inputs for its INT4 weights."""

    name: ClassVar[str] = "w4afp8"

    def takes(self, groups: Collection[Group]) -> bool:
        """All INT4 groups have such inputs."""
        int4 = [group for group in groups if group.group_size]
        if any(map(is_w4a8, int4)) and not all(map(is_w4a8, int4)):
            raise UserError("some INT4 groups of config.json quantize their inputs and some do not", fix="split them")
        return bool(int4) and all(map(is_w4a8, int4))

    def configured(self, scheme: Scheme) -> Self:
        """Refuses what no engine has a kernel for."""
        if scheme.name != WEIGHTS or not is_symmetric(scheme):
            zeros = scheme.name.startswith("int4") and not is_symmetric(scheme)
            raise UserError(
                "w4afp8 takes symmetric INT4 in groups of 128 only",
                found=f"{scheme.name}{', asymmetric' if zeros else ''}",
                fix=f"give --scheme {WEIGHTS} without --asymmetric, or --format compressed-tensors",
            )
        return super().configured(scheme)

    def warnings(self, config: Mapping[str, Any]) -> list[tuple[str, str]]:
        """What vLLM's kernels for 4-bit weights and 8-bit inputs need."""
        found = ["has kernels for it on Hopper and later only, and rounds its scales to FP8 at load"]
        hidden, width = config.get("hidden_size"), config.get("moe_intermediate_size")
        if isinstance(hidden, int) and hidden % STEP:
            found.append(f"needs a hidden size that is a multiple of {STEP}: {hidden}")
        if isinstance(width, int):
            sizes = [size for size in (1, 2, 4, 8) if width % (size * STEP) == 0]
            fitting = ", ".join(map(str, sizes)) or "none"
            found.append(f"tensor-parallel sizes for experts {width} wide: {fitting}; others need expert parallelism")
        return [("vLLM", text) for text in found]

    def block_of_several(self, converted: Mapping[str, Scheme], kept: Collection[str]) -> dict[str, Any]:
        """Groups as in compressed-tensors, with inputs."""
        return groups_block(converted, kept, TOKEN_ACTIVATIONS)


FORMAT = W4AFp8()

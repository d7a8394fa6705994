"""`quant_method: fp8`, the layout of Qwen's and DeepSeek's own FP8 releases, which vLLM, SGLang and transformers load.

    <module>.weight            F8_E4M3  [N, K]
    <module>.weight_scale_inv  BF16 (also F16, F32) [N/128, K/128], rounded up: W = weight * weight_scale_inv

In spite of its name the second tensor holds multipliers. `quantization_config` lists by full path every module that
is not converted; engines compare these paths in different ways, and a full path is what all of them understand alike.

Left out: per-tensor FP8 and other block sizes, and E8M0 scales, which are other schemes under the same `quant_method`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from qconvert.errors import UserError
from qconvert.schemes import Scheme, get_scheme

NAME = "fp8"
SCALE_SUFFIX = "_scale_inv"
BLOCK_SIZE = [128, 128]
SCALES_BY_TYPE = {"BF16": "bf16", "F32": "f32", "F16": "f32"}  # F16 is only ever read, and fits into F32


class Fp8:
    """The format; it has no state."""

    name = NAME

    def owns(self, config: Mapping[str, Any]) -> bool:
        """Block-quantized FP8 of the official kind."""
        if config.get("quant_method") != NAME:
            return False
        for key, expected in (("weight_block_size", BLOCK_SIZE), ("fmt", "e4m3"), ("scale_fmt", "float")):
            found = config.get(key, None if key == "weight_block_size" else expected)
            if found != expected:
                raise UserError(f"this kind of FP8 is not supported: {key}", expected=str(expected), found=str(found))
        return True

    def part_names(self, weight: str) -> dict[str, str]:
        """The codes keep the weight's name."""
        return {"codes": weight, "scales": weight + SCALE_SUFFIX}

    def quantized_weights(self, types: Mapping[str, str]) -> dict[str, Scheme]:
        """FP8 tensors with their scales; one without the other is refused, never read as it is."""
        weights = {}
        for name, dtype in types.items():
            if name.endswith(SCALE_SUFFIX) and types.get(name.removesuffix(SCALE_SUFFIX)) != "F8_E4M3":
                raise UserError(f"{name} has no FP8 weight", where=name.removesuffix(SCALE_SUFFIX), fix="convert again")
            if dtype != "F8_E4M3":
                continue
            scale_type = types.get(name + SCALE_SUFFIX)
            if scale_type not in SCALES_BY_TYPE:
                raise UserError(
                    f"{name} is FP8 but has no usable scale",
                    expected=f"{name + SCALE_SUFFIX} of type {', '.join(SCALES_BY_TYPE)}",
                    found=scale_type or "no such tensor",
                    fix="convert or download again",
                )
            weights[name] = get_scheme("fp8-block128", scales=SCALES_BY_TYPE[scale_type])
        return weights

    def config_block(self, scheme: Scheme, not_converted: Iterable[str]) -> dict[str, Any]:
        """The block as Qwen writes it."""
        return {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "modules_to_not_convert": list(not_converted),
            "quant_method": NAME,
            "weight_block_size": BLOCK_SIZE,
        }

    def not_converted(self, config: Mapping[str, Any]) -> list[str]:
        """The list under Qwen's key, or under the one that vLLM prefers."""
        return list(config.get("ignored_layers") or config.get("modules_to_not_convert") or [])


FORMAT = Fp8()

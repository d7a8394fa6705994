"""`quant_method: fp8`, the layout of Qwen's and DeepSeek's own FP8 releases, which vLLM, SGLang and transformers load.

    <module>.weight            F8_E4M3  [N, K]
    <module>.weight_scale_inv  BF16 (also F16, F32) [N/128, K/128], rounded up: W = weight * weight_scale_inv

In spite of its name the second tensor holds multipliers. `quantization_config` lists by full path every module that
is not converted; engines compare these paths in different ways, and a full path is what all of them understand alike.

Left out: per-tensor FP8 and other block sizes, and E8M0 scales, which are other schemes under the same `quant_method`.
"""

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from qconvert.errors import UserError
from qconvert.formats.format import Layout, StoredWeight, TensorMeta, refuse_several
from qconvert.schemes import QuantizedWeight, Scheme, get_scheme

NAME = "fp8"
SCHEME = "fp8-block128"
SCALE_SUFFIX = "_scale_inv"
BLOCK_SIZE = [128, 128]
SCALES_BY_TYPE = {"BF16": "bf16", "F32": "f32", "F16": "f32"}  # F16 is only ever read, and fits into F32


class Fp8:
    """The format; it has no state."""

    name = NAME
    lists_paths = True
    side_parts = ()

    def opened(self, block: Mapping[str, Any]) -> "Fp8 | None":
        """Block-quantized FP8 of the official kind."""
        if block.get("quant_method") != NAME:
            return None
        for key, expected in (("weight_block_size", BLOCK_SIZE), ("fmt", "e4m3"), ("scale_fmt", "float")):
            found = block.get(key, None if key == "weight_block_size" else expected)
            if found != expected:
                raise UserError(f"this kind of FP8 is not supported: {key}", expected=str(expected), found=str(found))
        return self

    def configured(self, scheme: Scheme) -> "Fp8":
        """Holds one scheme."""
        if scheme.name != SCHEME:
            raise UserError(
                f"the format fp8 cannot hold {scheme.name}", expected=SCHEME, fix="give --format compressed-tensors"
            )
        return self

    def part_names(self, weight: str) -> dict[str, str]:
        """The codes keep the weight's name."""
        return {"codes": weight, "scales": weight + SCALE_SUFFIX}

    def logical_name(self, tensor: str) -> str:
        """Scales belong to the weight that they are named after."""
        return tensor.removesuffix(SCALE_SUFFIX)

    def find(self, weight: str, tensors: Mapping[str, TensorMeta]) -> StoredWeight | None:
        """An FP8 tensor with its scale; one without the other is refused, never read as it is."""
        scale = weight + SCALE_SUFFIX
        if weight not in tensors or tensors[weight].dtype != "F8_E4M3":
            if scale in tensors:
                raise UserError(f"{scale} has no FP8 weight", where=weight, fix="convert again")
            return None
        kind = tensors[scale].dtype if scale in tensors else "no such tensor"
        if kind not in SCALES_BY_TYPE:
            raise UserError(
                f"{weight} is FP8 but has no usable scale",
                expected=f"{scale} of type {', '.join(SCALES_BY_TYPE)}",
                found=kind,
                fix="convert or download again",
            )
        scheme, shape = get_scheme(SCHEME, scales=SCALES_BY_TYPE[kind]), tensors[weight].shape
        layout = scheme.layout((shape[0], shape[1])) if len(shape) == 2 else {}
        return StoredWeight(scheme, shape, self.part_names(weight), layout)

    def is_striped(self, scheme: Scheme) -> bool:
        """Always."""
        return True

    def layout(self, scheme: Scheme, shape: tuple[int, int], scale_type: str | None = None) -> Layout:
        """The scheme's own; other tools also write F16 scales."""
        own = scheme.layout(shape)
        return own | {"scales": (scale_type or own["scales"][0], own["scales"][1])}

    def pack(self, numbers: QuantizedWeight) -> dict[str, Tensor]:
        """Nothing to do."""
        return {"codes": numbers.codes, "scales": numbers.scales}

    def unpack(self, stored: StoredWeight, parts: Mapping[str, Tensor]) -> QuantizedWeight:
        """Nothing to do."""
        return QuantizedWeight(stored.scheme, parts["codes"], parts["scales"])

    def zero_points(self, stored: StoredWeight, parts: Mapping[str, Tensor]) -> None:
        """None."""

    def check_zero_points(self, zeros: Tensor) -> None:
        """There are none."""

    def block_of_several(self, converted: Mapping[str, Scheme], kept: Collection[str]) -> dict[str, Any]:
        """There is a place for one."""
        raise refuse_several(self.name, converted)

    def warnings(self, config: Mapping[str, Any]) -> list[tuple[str, str]]:
        """None beyond those of its scheme."""
        return []

    def unsayable(self, block: Mapping[str, Any]) -> list[str]:
        """Activations with a scale of their own."""
        scheme = block.get("activation_scheme", "dynamic")
        return [] if scheme == "dynamic" else [f"activation_scheme {scheme!r}"]

    def config_block(self, scheme: Scheme, kept: Collection[str], converted: Collection[str] = ()) -> dict[str, Any]:
        """The block as Qwen writes it: every kept module by its full path."""
        return {
            "activation_scheme": "dynamic",
            "fmt": "e4m3",
            "modules_to_not_convert": list(kept),
            "quant_method": NAME,
            "weight_block_size": BLOCK_SIZE,
        }

    def excluded(self, block: Mapping[str, Any], modules: Collection[str]) -> dict[str, set[str]]:
        """The list under Qwen's key, or under the one that vLLM prefers; every entry is one module."""
        present = frozenset(modules)
        listed = block.get("ignored_layers") or block.get("modules_to_not_convert") or []
        return {entry: {entry} & present for entry in listed}

    def guessed(self, block: Mapping[str, Any], modules: Collection[str]) -> set[str]:
        """Engines go by the list alone."""
        return set()


FORMAT = Fp8()

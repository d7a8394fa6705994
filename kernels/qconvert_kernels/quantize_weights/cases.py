"""What of weight quantization is compiled in tests: bf16 weights, every kind of scale, the slowest rules."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from qconvert_kernels.compiled import Case
from qconvert_kernels.quantize_weights import ROUNDINGS, WARPS, fp8_constants, int4_constants

FP8 = {"W": "*bf16", "CODES": "*fp8e4nv"} | dict.fromkeys(("N", "K", "stride_w", "stride_scale"), "i32")
INT4 = {"W": "*bf16", "CODES": "*i8", "ZERO": "*i8"} | dict.fromkeys(("TOTAL", "G", "K", "stride_w"), "i32")
POINTER = {"bf16": "*bf16", "f32": "*fp32", "pow2": "*bf16"}


def cases() -> Iterator[Case]:
    """FP8 by scale type; INT4 by group, rule and zero points."""
    module = "quantize_weights.kernels"
    for scales in ROUNDINGS:
        types = FP8 | {"SCALE": POINTER[scales]}
        yield Case(
            f"quantize fp8_block128 {scales}", module, "fp8_block128", types, fp8_constants(scales),
            num_warps=WARPS, fp_fusion=False,
        )  # fmt: skip
    for group, method, asymmetric in (
        (128, "rtn", False), (128, "mse", False), (128, "rtn", True), (128, "mse", True),
        (32, "mse", False), (64, "mse", False),
    ):  # fmt: skip
        constants = int4_constants(torch.bfloat16, group, "bf16", method, asymmetric)
        name = f"quantize int4_g{group} {method}{' asymmetric' if asymmetric else ''}"
        types = INT4 | {"SCALE": POINTER["bf16"]}
        yield Case(name, module, "int4", types, constants, fp_fusion=False)

"""What of weight quantization is compiled in tests: bf16 weights, every kind of scale, the slowest rules, errors."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from qconvert_kernels.compiled import Case
from qconvert_kernels.quantize_weights import ROUNDINGS, WARPS, error_constants, fp8_constants, int4_constants

FP8 = {"W": "*bf16", "CODES": "*fp8e4nv"} | dict.fromkeys(("N", "K", "stride_w", "stride_scale"), "i32")
INT4 = {"W": "*bf16", "CODES": "*i8", "ZERO": "*i8"} | dict.fromkeys(("TOTAL", "G", "K", "stride_w"), "i32")
ERRORS = {"W": "*bf16", "SCALE": "*bf16", "ZERO": "*i8", "SUMS": "*fp64"}
ERRORS |= dict.fromkeys(("N", "K", "stride_w", "stride_scale"), "i32")
POINTER = {"bf16": "*bf16", "f32": "*fp32", "pow2": "*bf16"}


def cases() -> Iterator[Case]:
    """FP8 by scale type; INT4 by group, rule and zero points; errors of both."""
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
    for name, codes, block in (("fp8_block128", "*fp8e4nv", (128, 128)), ("int4_g64", "*i8", (1, 64))):
        constants = error_constants(block, codes == "*i8")
        types = ERRORS | {"CODES": codes}
        name = f"squared_errors {name}"
        yield Case(name, module, "squared_errors", types, constants, num_warps=WARPS, fp_fusion=False)

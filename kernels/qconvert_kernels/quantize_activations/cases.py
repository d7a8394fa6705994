"""What of activation quantization is compiled in tests: bf16, at the width of Qwen3-Next behind the norm."""

from __future__ import annotations

from collections.abc import Iterator

from qconvert_kernels.compiled import Case
from qconvert_kernels.quantize_activations import ROWS

POINTERS = {"X": "*bf16", "Y": "*bf16", "CODES": "*fp8e4nv", "SCALES": "*fp32"}
QUANTIZE = POINTERS | {"UP": "*bf16"}
QUANTIZE |= dict.fromkeys(("M", "K", "stride_x", "stride_up", "stride_scale_k"), "i32")
NORM = POINTERS | {"WEIGHT": "*bf16", "eps": "fp32"} | dict.fromkeys(("K", "stride_x", "stride_scale_k"), "i32")


def cases() -> Iterator[Case]:
    """Alone, behind silu * up, behind RMSNorm."""
    module, unit = "quantize_activations.kernels", {"stride_scale_m": 1}
    for name, silu_mul in (("quantize", False), ("silu_mul_quantize", True)):
        constants = unit | {"SILU_MUL": silu_mul, "KEEP": False, "ROWS": ROWS}
        yield Case(name, module, "quantize", QUANTIZE, constants)
    yield Case("rms_norm_quantize", module, "rms_norm_quantize", NORM, unit | {"GROUPS": 16})

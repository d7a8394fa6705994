"""What of the INT4 product is compiled in tests: every tiling of the default configuration, every group size once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from qconvert_kernels.compiled import Case
from qconvert_kernels.configurations import entries
from qconvert_kernels.fp8_gemm.cases import IN_REGISTERS
from qconvert_kernels.tiling import Tiling, shared_memory

TYPES = dict.fromkeys(("M", "N", "K", "stride_x", "stride_group", "stride_split"), "i32") | {
    "X": "*bf16",
    "WORDS": "*i16",
    "SCALES": "*bf16",
    "OFFSETS": "*bf16",
    "Y": "*bf16",
}


def cases() -> Iterator[Case]:
    """Unsplit; the first tiling also for smaller groups with zero points."""
    tilings = dict.fromkeys(replace(entry.tiling, splits=1) for entry in entries("int4_w4a16", "default"))
    for tiling in tilings:
        yield _case(tiling, 128, False)
    for group in (32, 64, 128):
        yield _case(next(iter(tilings)), group, True)


def _case(tiling: Tiling, group: int, asymmetric: bool) -> Case:
    name = f"int4_w4a16 {tiling.block_tokens}x{tiling.block_weights} g{group}{' zero points' if asymmetric else ''}"
    constants = {"GROUP": group, "ASYMMETRIC": asymmetric, "SPLITS": 1, "EVEN_K": True}
    constants |= {"BLOCK_TOKENS": tiling.block_tokens, "BLOCK_WEIGHTS": tiling.block_weights}
    return Case(
        name, "int4_gemm.few_tokens", "product", TYPES, constants, tiling.num_warps, tiling.num_stages,
        "bf16.bf16", shared_memory("int4_w4a16", tiling), IN_REGISTERS,
    )  # fmt: skip

"""What of the grouped products is compiled in tests: every default tiling, for the experts of Qwen3-Next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from qconvert_kernels.compiled import Case
from qconvert_kernels.fp8_gemm.cases import IN_REGISTERS
from qconvert_kernels.grouped.tilings import DEFAULTS, GroupedTiling, Product, shared_memory

SIZES = {"H": 2048, "INNER": 512}
EXPERTS, SLOTS = 512, 10
ROUTES = dict.fromkeys(("total", "slots", "blocks", "stride_scale_m", "stride_scale_k"), "i32") | {
    "PAIRS": "*i32",
    "EXPERTS": "*i32",
    "COUNTS": "*i32",
    "DISTINCT": "*i32",
    "ROUTES": "*i64",
    "WEIGHTS": "*fp32",
}
BF16 = ROUTES | dict.fromkeys(("X", "HIDDEN", "Z", "Y", "SCALES", "OFFSETS"), "*bf16") | {"W": "*i16"}
FP8 = BF16 | {"W": "*fp8e4nv", "X_SCALES": "*fp32", "H_SCALES": "*fp32"}
KERNELS: dict[str, tuple[str, dict[str, str], dict[str, Any]]] = {
    "fp8_w8a8": ("grouped.kernels_fp8", FP8 | {"X": "*fp8e4nv", "HIDDEN": "*fp8e4nv"}, {"A8": True}),
    "fp8_w8a16": ("grouped.kernels_fp8", FP8, {"A8": False}),
    "int4_w4a16": ("grouped.kernels_int4", BF16, {"GROUP": 128, "ASYMMETRIC": False}),
}


def cases() -> Iterator[Case]:
    """Both products of every tiling; the smallest and the largest INT4 one with small groups and zero points too."""
    for kind, defaults in DEFAULTS.items():
        for _, tiling in defaults:
            yield from _products(kind, tiling, {})
    for _, tiling in (DEFAULTS["int4_w4a16"][0], DEFAULTS["int4_w4a16"][-1]):
        yield from _products("int4_w4a16", tiling, {"GROUP": 32, "ASYMMETRIC": True})
    rows = "grouped.kernels_rows"
    yield Case("routes count", rows, "count", BF16, {"CHUNK": 1024})
    yield Case("routes sort", rows, "sort", BF16, {"E": EXPERTS, "TILE": 16, "CHUNK": 1024, "ALL": EXPERTS})
    sizes = {"H": SIZES["H"], "SLOTS": SLOTS, "BLOCK_N": 512}
    yield Case("routes combine", rows, "combine", BF16 | {"E": "i32"}, sizes)


def _products(kind: str, tiling: GroupedTiling, other: dict[str, Any]) -> Iterator[Case]:
    module, types, constants = KERNELS[kind]
    constants = constants | other | SIZES
    text = f" g{constants['GROUP']}{' zero points' if constants['ASYMMETRIC'] else ''}" if "GROUP" in constants else ""
    for name in ("gate_up", "down"):
        product: Product = getattr(tiling, name)
        yield Case(
            f"{kind} grouped {name} {tiling.tile}x{product.block_weights}{text}", module, name, types,
            constants | {"TILE": tiling.tile, "BLOCK_N": product.block_weights},
            product.num_warps, product.num_stages,
            "e4m3.e4m3" if kind == "fp8_w8a8" else "bf16.bf16", shared_memory(kind, name, tiling),
            () if kind == "fp8_w8a8" else IN_REGISTERS,
        )  # fmt: skip

"""What of the block-FP8 products is compiled in tests: every tiling of the default configurations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from qconvert_kernels.compiled import Case
from qconvert_kernels.configurations import entries
from qconvert_kernels.tiling import BLOCK, Tiling, shared_memory

SIZES = dict.fromkeys(("M", "N", "K", "stride_x", "stride_xs_k", "stride_w", "stride_ws", "stride_split"), "i32")
X_TYPES = {"fp8_w8a8": ("fp8e4nv", "e4m3.e4m3"), "fp8_w8a16": ("bf16", "bf16.bf16")}

IN_REGISTERS = ("STS",)  # on the way to the tensor core no weight is stored to shared memory


def cases() -> Iterator[Case]:
    """Each tiling once, unsplit; one also splitting K, and with a K that is no multiple of 128."""
    for kernel in X_TYPES:
        tilings = dict.fromkeys(replace(entry.tiling, splits=1) for entry in entries(kernel, "default"))
        for tiling in tilings:
            yield _many(tiling) if tiling.path == "many_tokens" else _few(kernel, tiling)
    first = entries("fp8_w8a8", "default")[0].tiling
    yield _few("fp8_w8a8", replace(first, splits=4))
    yield _few("fp8_w8a8", replace(first, splits=1), even=False)
    yield Case(
        "add_splits", "split_k", "add_splits", {"PARTS": "*fp32", "Y": "*bf16", "size": "i32"},
        {"SPLITS": 4, "BLOCK_SIZE": 1024},
    )  # fmt: skip


def _few(kernel: str, tiling: Tiling, even: bool = True) -> Case:
    x, factors = X_TYPES[kernel]
    tokens, weights = tiling.block_tokens, tiling.block_weights
    name = f"{kernel} few_tokens {tokens}x{weights}"
    return Case(
        name + ("" if tiling.splits == 1 else f" splits {tiling.splits}") + ("" if even else " ragged K"),
        "fp8_gemm.few_tokens",
        "product",
        SIZES
        | {"X": f"*{x}", "X_SCALES": "*fp32", "W": "*fp8e4nv", "W_SCALES": "*bf16"}
        | {"Y": "*bf16" if tiling.splits == 1 else "*fp32"},
        {"stride_xs_m": 1, "SPLITS": tiling.splits, "EVEN_K": even, "BLOCK_TOKENS": tokens, "BLOCK_WEIGHTS": weights},
        tiling.num_warps,
        tiling.num_stages,
        factors,
        shared_memory(kernel, tiling),
        IN_REGISTERS,
    )


def _many(tiling: Tiling) -> Case:
    tokens, weights = tiling.block_tokens, tiling.block_weights
    return Case(
        f"fp8_w8a8 many_tokens {tokens}x{weights}",
        "fp8_gemm.many_tokens",
        "product",
        dict.fromkeys(("M", "N", "K", "stride_xs_k", "stride_ws"), "i32")
        | {"X": f"tensordesc<fp8e4nv[{tokens},{BLOCK}]>", "X_SCALES": "*fp32"}
        | {"W": f"tensordesc<fp8e4nv[{weights},{BLOCK}]>", "W_SCALES": "*bf16"}
        | {"Y": f"tensordesc<bf16[{tokens},{weights}]>"},
        {"stride_xs_m": 1, "BLOCK_TOKENS": tokens, "BLOCK_WEIGHTS": weights},
        tiling.num_warps,
        tiling.num_stages,
        "e4m3.e4m3",
        shared_memory("fp8_w8a8", tiling),
    )

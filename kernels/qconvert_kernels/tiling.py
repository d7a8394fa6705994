"""How a product is cut into tiles, what that needs, and whether a device has it.

The numbers here are arithmetic on the tile alone; `qconvert_kernels.compiled` holds them against the compiler.
"""

from __future__ import annotations

from dataclasses import dataclass

BLOCK = 128  # every kernel takes K in steps of 128
SHARED_MEMORY_LIMIT = 232_448  # bytes a program may have on an H100 or H200; checked at launch only, hence here first

# Bytes of a step of 128 of K: for one row of weights, for one token.
STEP_BYTES = {"fp8_w8a8": (128, 128), "fp8_w8a16": (128, 256), "int4_w4a16": (64, 256)}


@dataclass(frozen=True)
class Tiling:
    """One entry of a configuration; `path` is the module that holds the kernel."""

    path: str
    block_tokens: int
    block_weights: int
    splits: int
    num_warps: int
    num_stages: int


def shared_memory(kernel: str, tiling: Tiling) -> int:
    """Bytes of shared memory, from above: the stages of the pipeline and, where it is written by TMA, the result."""
    weights, token = STEP_BYTES[kernel]
    stage = tiling.block_weights * weights + tiling.block_tokens * token
    result = tiling.block_tokens * tiling.block_weights * 4 if tiling.path == "many_tokens" else 0
    return tiling.num_stages * stage + result + 1024


def problems(kernel: str, tiling: Tiling) -> list[str]:
    """Why this tiling cannot or should not run; empty if it can. The tuner prunes by it, the tests check by it."""
    found = []
    if kernel not in STEP_BYTES:
        return [f"unknown kernel {kernel!r}; known: {', '.join(STEP_BYTES)}"]
    if tiling.path not in ("few_tokens", "many_tokens"):
        found.append(f"unknown path {tiling.path!r}")
    if tiling.path == "many_tokens" and kernel != "fp8_w8a8":
        found.append("the path many_tokens takes eight-bit activations only")
    if tiling.path == "many_tokens" and tiling.splits != 1:
        found.append("the path many_tokens does not split K")
    least = {"few_tokens": (16, 64), "many_tokens": (64, 64)}.get(tiling.path, (16, 64))
    if tiling.block_tokens not in (16, 32, 64, 128, 256) or tiling.block_tokens < least[0]:
        found.append(f"block_tokens {tiling.block_tokens}: a power of two from {least[0]} to 256")
    if tiling.block_weights not in (64, 128):
        found.append(f"block_weights {tiling.block_weights}: 64 or 128, a divisor of the scale's block")
    if tiling.num_warps not in (4, 8):
        found.append(f"num_warps {tiling.num_warps}: 4 or 8, whole warp groups")
    if tiling.splits < 1 or tiling.num_stages < 1:
        found.append("splits and num_stages: 1 or more")
    if not found and shared_memory(kernel, tiling) > SHARED_MEMORY_LIMIT:
        found.append(f"{shared_memory(kernel, tiling)} bytes of shared memory, {SHARED_MEMORY_LIMIT} are there")
    return found

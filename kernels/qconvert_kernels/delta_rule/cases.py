"""What of the delta rule is compiled in tests: each kernel for the 32 heads of Qwen3-Next."""

from __future__ import annotations

from collections.abc import Iterator

from qconvert_kernels.compiled import Case
from qconvert_kernels.delta_rule import BLOCK_V, CHUNK, PREPARE, SCAN

MODULE = "delta_rule.kernels"
TYPES = {
    **dict.fromkeys(("Q", "K", "V", "Y"), "*bf16"),
    **dict.fromkeys(("DECAY", "BETA", "STATE", "END", "UPDATES", "REACH", "GROWN", "LEFT", "READS", "FADE"), "*fp32"),
    **dict.fromkeys(("tokens", "chunks"), "i32"),
}
HEADS = {"HEADS": 32, "DK": 128, "DV": 128}


def cases() -> Iterator[Case]:
    """One of each."""
    sizes = HEADS | {"KEY_HEADS": 16, "BLOCK_K": 128, "BLOCK_V": BLOCK_V}
    yield Case("delta_rule recurrent", MODULE, "recurrent", TYPES, sizes)
    part, warps, stages = PREPARE
    sizes = HEADS | {"KEY_HEADS": 16, "BLOCK_K": 128, "PART": part, "C": CHUNK}
    yield Case("delta_rule prepare", MODULE, "prepare", TYPES, sizes, warps, stages, "tf32.tf32")
    part, warps, stages = SCAN
    sizes = HEADS | {"BLOCK_V": BLOCK_V, "PART": part, "PARTS": HEADS["DK"] // part, "C": CHUNK}
    yield Case("delta_rule scan", MODULE, "scan", TYPES, sizes, warps, stages, "tf32.tf32")

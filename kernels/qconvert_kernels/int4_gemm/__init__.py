"""Linear layers on INT4 weights in groups of 32, 64 or 128, activations in bf16 (W4A16): y = x W^T.

    packed = repack(codes, scales, zeros, group=128)     once, at load
    y      = int4_gemm_nt(x, packed)

Symmetric or with zero points; scales of any sign. Codes become bf16 in registers exactly, the products are summed in
fp32 by the tensor core, and each group's sum is multiplied by its scale in fp32. Equations: `naive`; layout: `packing`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qconvert_kernels.configurations import choose
from qconvert_kernels.errors import BadInput
from qconvert_kernels.int4_gemm.packing import BLOCK, ROWS, WORDS, PackedInt4, repack, unpack
from qconvert_kernels.launch import check, check_devices, device_name, load_kernels, on
from qconvert_kernels.tiling import Tiling, problems

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
KERNEL = "int4_w4a16"

__all__ = ["PackedInt4", "int4_gemm_nt", "repack", "unpack"]


def int4_gemm_nt(
    x: Tensor, packed: PackedInt4, *, out_dtype: torch.dtype = torch.bfloat16, tiling: Tiling | None = None
) -> Tensor:
    """x [M, K] bf16 -> [M, N] bf16 or fp32."""
    _check(x, packed, out_dtype)
    m, n, k = x.shape[0], packed.rows, packed.columns
    if 0 in (m, n, k):
        return torch.zeros(m, n, dtype=out_dtype, device=x.device)
    tiling = tiling or choose(KERNEL, device_name(x.device), m, n, k)
    if wrong := problems(KERNEL, tiling):
        raise BadInput(f"{tiling}: {'; '.join(wrong)}")
    splits = min(tiling.splits, -(-k // BLOCK))
    y = torch.empty(m, n, dtype=out_dtype, device=x.device)
    parts = y if splits == 1 else torch.empty(splits, m, n, dtype=torch.float32, device=x.device)
    grid = (-(-n // tiling.block_weights), -(-m // tiling.block_tokens), splits)
    kernel = load_kernels("int4_gemm.few_tokens").product
    with on(x.device):
        kernel[grid](
            x, packed.words, packed.scales, packed.scales if packed.offsets is None else packed.offsets, parts,
            m, n, k, x.stride(0), packed.scales.shape[1], m * n,
            GROUP=packed.group, ASYMMETRIC=packed.offsets is not None, SPLITS=splits, EVEN_K=k % BLOCK == 0,
            BLOCK_TOKENS=tiling.block_tokens, BLOCK_WEIGHTS=tiling.block_weights,
            num_warps=tiling.num_warps, num_stages=tiling.num_stages,
        )  # fmt: skip
        if splits > 1:
            load_kernels("split_k").add(parts, y)
    return y


def _check(x: Tensor, packed: PackedInt4, out_dtype: torch.dtype) -> None:
    """A packed weight comes from `repack`; its sizes are checked all the same, as the kernel reads without masks."""
    check("x", x, (-1, packed.columns), (torch.bfloat16,))
    check_devices(x=x, words=packed.words, scales=packed.scales, offsets=packed.offsets)
    tiles, blocks = -(-packed.rows // ROWS), -(-packed.columns // BLOCK)
    check("words", packed.words, (tiles, blocks, ROWS, WORDS), (torch.int16,))
    by_group = (blocks * BLOCK // packed.group, tiles * ROWS)
    check("scales", packed.scales, by_group, FLOATS)
    if packed.offsets is not None:
        check("offsets", packed.offsets, by_group, (torch.bfloat16,))
    for name, part in (("words", packed.words), ("scales", packed.scales), ("offsets", packed.offsets)):
        if part is not None and not part.is_contiguous():
            raise BadInput(f"{name}: must be contiguous, as `repack` makes it")
    if out_dtype not in (torch.bfloat16, torch.float32):
        raise BadInput(f"out_dtype: expected bfloat16 or float32, found {out_dtype}")

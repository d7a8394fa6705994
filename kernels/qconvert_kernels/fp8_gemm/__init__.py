"""Linear layers on block-FP8 weights: y = x W^T with W = codes * scales, one scale per 128 x 128.

    x quantized (codes and scales)   W8A8, e4m3 tensor cores
    x bf16                           W8A16, weights widened to bf16 in registers, the product exact before the sum

Each 128 of K is summed by the tensor core and added in fp32. The order of the sum, so its last bits, depends on the
tiling, hence on the number of tokens; for one tiling it is always the same. Equations: `naive`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qconvert_kernels.configurations import choose
from qconvert_kernels.errors import BadInput
from qconvert_kernels.launch import check, check_devices, device_name, load_kernels, on, processors
from qconvert_kernels.quantize_activations.naive import QuantizedActivations
from qconvert_kernels.tiling import BLOCK, Tiling, problems

OUT = (torch.bfloat16, torch.float32)
WITHOUT_TMA = Tiling("few_tokens", block_tokens=64, block_weights=128, splits=1, num_warps=8, num_stages=4)

__all__ = ["fp8_block_gemm_nt"]


def fp8_block_gemm_nt(
    x: Tensor | QuantizedActivations,
    codes: Tensor,
    scales: Tensor,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
    tiling: Tiling | None = None,
) -> Tensor:
    """x [M, K], codes [N, K] e4m3, scales [N/128, K/128] bf16 or fp32 -> [M, N] bf16 or fp32."""
    values = x if isinstance(x, Tensor) else x.codes
    _check(x, codes, scales, out_dtype)
    m, (n, k) = values.shape[0], codes.shape
    if 0 in (m, n, k):
        return torch.zeros(m, n, dtype=out_dtype, device=values.device)
    kernel = "fp8_w8a16" if isinstance(x, Tensor) else "fp8_w8a8"
    tiling = tiling or choose(kernel, device_name(values.device), m, n, k)
    if wrong := problems(kernel, tiling):
        raise BadInput(f"{tiling}: {'; '.join(wrong)}")
    with on(values.device):
        if tiling.path == "many_tokens" and not isinstance(x, Tensor):
            if _tma_can_read(x.codes) and _tma_can_read(codes) and n * out_dtype.itemsize % 16 == 0:
                return _many_tokens(x, codes, scales, out_dtype, tiling)
            tiling = WITHOUT_TMA
        x_scales = scales if isinstance(x, Tensor) else x.scales  # a pointer that is not read for bf16
        return _few_tokens(values, x_scales, codes, scales, out_dtype, tiling)


def _check(x: Tensor | QuantizedActivations, codes: Tensor, scales: Tensor, out_dtype: torch.dtype) -> None:
    check("codes", codes, (-1, -1), (torch.float8_e4m3fn,))
    n, k = codes.shape
    check("scales", scales, (-(-n // BLOCK), -(-k // BLOCK)), OUT)
    values, x_scales = (x, None) if isinstance(x, Tensor) else x
    check_devices(x=values, x_scales=x_scales, codes=codes, scales=scales)
    if isinstance(x, Tensor):
        check("x", x, (-1, k), (torch.bfloat16,))
    else:
        check("x.codes", x.codes, (-1, k), (torch.float8_e4m3fn,))
        if x.scales.shape != (x.codes.shape[0], -(-k // BLOCK)) or x.scales.dtype != torch.float32:
            expected = [x.codes.shape[0], -(-k // BLOCK)]
            raise BadInput(f"x.scales: expected {expected} float32, found {list(x.scales.shape)} {x.scales.dtype}")
    if out_dtype not in OUT:
        raise BadInput(f"out_dtype: expected bfloat16 or float32, found {out_dtype}")


def _tma_can_read(x: Tensor) -> bool:
    """Descriptors want the start of every row at a multiple of 16 bytes."""
    return x.data_ptr() % 16 == 0 and x.stride(0) * x.element_size() % 16 == 0


def _few_tokens(
    x: Tensor, x_scales: Tensor, codes: Tensor, scales: Tensor, out_dtype: torch.dtype, tiling: Tiling
) -> Tensor:
    kernels = load_kernels("fp8_gemm.few_tokens")
    m, (n, k) = x.shape[0], codes.shape
    splits = min(tiling.splits, -(-k // BLOCK))
    y = torch.empty(m, n, dtype=out_dtype, device=x.device)
    parts = y if splits == 1 else torch.empty(splits, m, n, dtype=torch.float32, device=x.device)
    grid = (-(-n // tiling.block_weights), -(-m // tiling.block_tokens), splits)
    kernels.product[grid](
        x, x_scales, codes, scales, parts, m, n, k,
        x.stride(0), *x_scales.stride(), codes.stride(0), scales.stride(0), m * n,
        SPLITS=splits, EVEN_K=k % BLOCK == 0, BLOCK_TOKENS=tiling.block_tokens, BLOCK_WEIGHTS=tiling.block_weights,
        num_warps=tiling.num_warps, num_stages=tiling.num_stages,
    )  # fmt: skip
    if splits > 1:
        load_kernels("split_k").add(parts, y)
    return y


def _many_tokens(
    x: QuantizedActivations, codes: Tensor, scales: Tensor, out_dtype: torch.dtype, tiling: Tiling
) -> Tensor:
    kernels = load_kernels("fp8_gemm.many_tokens")
    describe = kernels.TensorDescriptor.from_tensor
    m, (n, k) = x.codes.shape[0], codes.shape
    y = torch.empty(m, n, dtype=out_dtype, device=codes.device)
    tokens, weights = tiling.block_tokens, tiling.block_weights
    tiles = -(-m // tokens) * -(-n // weights)
    kernels.product[(min(tiles, processors(codes.device)),)](
        describe(x.codes, [tokens, BLOCK]), x.scales, describe(codes, [weights, BLOCK]), scales,
        describe(y, [tokens, weights]), m, n, k, *x.scales.stride(), scales.stride(0),
        BLOCK_TOKENS=tokens, BLOCK_WEIGHTS=weights, num_warps=tiling.num_warps, num_stages=tiling.num_stages,
    )  # fmt: skip
    return y

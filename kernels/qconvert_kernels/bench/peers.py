"""The same product by others, on the same inputs: torch, and libraries that happen to be installed.

    prepare = PEERS[kernel][name];   call = prepare(problem, inputs)      then call() is timed

`prepare` does what an engine does once at load (a weight in another layout or type). A library that is not there is
said to be so; one that fails is quoted. Results of peers are not checked: they round elsewhere, and are not ours to
certify. torch's bf16 product stands for "not quantized at all".
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qconvert_kernels.bench.problem import CODE, Problem
from qconvert_kernels.bench.timing import Call
from qconvert_kernels.fp8_gemm import naive as fp8_naive
from qconvert_kernels.int4_gemm import naive as int4_naive
from qconvert_kernels.quantize_activations import naive as activation

Prepare = Callable[[Problem, Any], Call]


def torch_bf16(problem: Problem, inputs: Any) -> Call:
    """F.linear on the dequantized weight."""
    x, *weight = inputs
    if problem.kernel == "int4_w4a16":
        dense = int4_naive.dequantize(weight[0]).bfloat16()
    else:
        dense = fp8_naive.dequantize(*weight).bfloat16()
    wide = x if isinstance(x, Tensor) else activation.dequantize(x).bfloat16()
    return lambda: F.linear(wide, dense)


def torch_scaled_mm_by_row(problem: Problem, inputs: Any) -> Call:
    """torch._scaled_mm with a scale per token and per row of the weight: coarser than blocks."""
    x, codes, _ = inputs
    scale_x = torch.ones(x.codes.shape[0], 1, device=codes.device)
    scale_w = torch.ones(1, codes.shape[0], device=codes.device)
    return lambda: torch._scaled_mm(x.codes, codes.T, scale_x, scale_w, out_dtype=torch.bfloat16)


def torch_scaled_mm_by_block(problem: Problem, inputs: Any) -> Call:
    """torch._scaled_mm with our own scales, 1 x 128 and 128 x 128; newer versions on Hopper only."""
    x, codes, scales = inputs
    scale_x = x.scales.T.contiguous().T
    scale_w = scales.float().T.contiguous()
    return lambda: torch._scaled_mm(x.codes, codes.T, scale_x, scale_w, out_dtype=torch.bfloat16)


def torch_experts_bf16(problem: Problem, inputs: Any) -> Call:
    """Each expert that has tokens, one after the other in bf16, its rows known beforehand (which favours it)."""
    x, experts, weights, stacked = inputs
    work = []
    for expert in experts.unique().cpu().tolist():
        token, slot = (experts == expert).nonzero(as_tuple=True)
        gate, up, down = (one.bfloat16() for one in stacked.expert(expert))
        work.append((token, weights[token, slot, None].bfloat16(), gate, up, down))

    def call() -> Tensor:
        y = torch.zeros_like(x)
        for token, scale, gate, up, down in work:
            rows = x[token]
            y.index_add_(0, token, F.linear(F.silu(F.linear(rows, gate)) * F.linear(rows, up), down) * scale)
        return y

    return call


def vllm_block_fp8(problem: Problem, inputs: Any) -> Call:
    """vLLM's Triton product for block FP8; its name has changed over versions."""
    module = import_module("vllm.model_executor.layers.quantization.utils.fp8_utils")
    names = ("w8a8_triton_block_scaled_mm", "w8a8_block_fp8_matmul")
    product = next(getattr(module, name) for name in names if hasattr(module, name))
    x, codes, scales = inputs
    wide = scales.float()
    return lambda: product(x.codes, codes, x.scales, wide, [128, 128], torch.bfloat16)


def fla_delta_rule(problem: Problem, inputs: Any) -> Call:
    """flash-linear-attention: chunked for prompts, fused recurrent for single tokens; rounds to bf16 inside."""
    module = import_module("fla.ops.gated_delta_rule")
    q, k, v, g, beta, state = inputs
    group = v.shape[2] // k.shape[2]
    q, k = q.repeat_interleave(group, 2), k.repeat_interleave(group, 2)
    rule = module.fused_recurrent_gated_delta_rule if v.shape[1] == 1 else module.chunk_gated_delta_rule
    wide = {"initial_state": state, "output_final_state": True, "use_qk_l2norm_in_kernel": True}
    return lambda: rule(q, k, v, g=g, beta=beta.to(v.dtype), **wide)


def torch_quantize(problem: Problem, inputs: Any) -> Call:
    """Plain torch, several passes over memory."""
    kernel = problem.kernel
    if kernel == "rms_norm_quantize":
        x, weight = inputs
        return lambda: activation.quantize(activation.rms_norm(x, weight, 1e-6))
    if kernel == "silu_mul_quantize":
        return lambda: activation.quantize(activation.silu_mul(*inputs))
    return lambda: activation.quantize(*inputs)


def torch_cast(problem: Problem, inputs: Any) -> Call:
    """A bare cast to e4m3 without scales: the least that any quantization reads and writes."""
    x = inputs[0]
    return lambda: x.to(CODE)


def torch_cast_weight(problem: Problem, inputs: Any) -> Call:
    """A bare cast of the weight to e4m3."""
    return lambda: inputs.to(CODE)


_EXPERTS: dict[str, Prepare] = {"torch bf16, one by one": torch_experts_bf16}
_QUANTIZE: dict[str, Prepare] = {"torch": torch_quantize, "torch cast": torch_cast}
PEERS: dict[str, dict[str, Prepare]] = {
    "fp8_w8a8": {
        "torch bf16": torch_bf16,
        "torch._scaled_mm by row": torch_scaled_mm_by_row,
        "torch._scaled_mm by block": torch_scaled_mm_by_block,
        "vllm": vllm_block_fp8,
    },
    "fp8_w8a16": {"torch bf16": torch_bf16},
    "int4_w4a16": {"torch bf16": torch_bf16},
    "grouped_fp8_w8a8": _EXPERTS,
    "grouped_fp8_w8a16": _EXPERTS,
    "grouped_int4_w4a16": _EXPERTS,
    "quantize": _QUANTIZE,
    "rms_norm_quantize": _QUANTIZE,
    "silu_mul_quantize": _QUANTIZE,
    "quantize_weights": {"torch cast": torch_cast_weight},
    "gated_delta_rule": {"flash-linear-attention": fla_delta_rule},
}

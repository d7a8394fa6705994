"""The products by name, each kernel beside its naive truth, for whoever wants all of them: benchmarks, tuner, tests.

A kernel and its truth take the same arguments; the kernel may take a tiling besides, and the truth a dtype to sum in.
The names are those of the configurations.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from qconvert_kernels import fp8_gemm, int4_gemm
from qconvert_kernels.fp8_gemm import naive as fp8_naive
from qconvert_kernels.int4_gemm import naive as int4_naive


class Kernel(NamedTuple):
    """run(...) on a GPU or in the interpreter; naive(...) anywhere."""

    run: Callable[..., Tensor]
    naive: Callable[..., Tensor]


KERNELS = {
    "fp8_w8a8": Kernel(fp8_gemm.fp8_block_gemm_nt, fp8_naive.fp8_block_gemm_nt),
    "fp8_w8a16": Kernel(fp8_gemm.fp8_block_gemm_nt, fp8_naive.fp8_block_gemm_nt),
    "int4_w4a16": Kernel(int4_gemm.int4_gemm_nt, int4_naive.int4_gemm_nt),
}

"""The routed experts of a mixture-of-experts layer, all of them in one launch a step.

    y = moe(x, experts, weights, Fp8Experts.stack(...) or Int4Experts.stack(...), activations)

    routing    which rows of which block belong to which expert
    stacked    what the stacked experts of a format offer; fp8 and int4 are the formats
    naive      the specification: one expert after the other, in plain torch
    products   `moe` and its steps, as launches of kernels_rows, kernels_fp8 and kernels_int4

The shared expert and the router stay outside. Only the modules named kernels_* import triton.
"""

from qconvert_kernels.grouped.fp8 import Fp8Experts
from qconvert_kernels.grouped.int4 import Int4Experts
from qconvert_kernels.grouped.products import moe

__all__ = ["Fp8Experts", "Int4Experts", "moe"]

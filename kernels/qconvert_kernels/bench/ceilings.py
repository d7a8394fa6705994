"""What this GPU reaches at most in this run, measured by the same clock: the yardstick for every share.

copy    bytes read and written by a copy of one large bf16 tensor, a second
bf16    FLOP/s of torch's product of two square bf16 matrices
fp8     FLOP/s of torch._scaled_mm on e4m3, one scale a matrix; None where this torch or GPU has none
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch

from qconvert_kernels.bench.timing import Call, Clock, Times

COPIED = 1 << 30  # bytes
SQUARE = 8192


@dataclass(frozen=True)
class Ceilings:
    """Bytes/s and FLOP/s."""

    copy: float
    bf16: float
    fp8: float | None
    why_no_fp8: str = ""


def measure_ceilings(device: torch.device, clock: Clock, copied: int = COPIED, square: int = SQUARE) -> Ceilings:
    """All three."""
    source = torch.ones(copied // 2, dtype=torch.bfloat16, device=device)
    targets = [torch.empty_like(source) for _ in range(2)]
    copies: list[Call] = [partial(to.copy_, source) for to in targets]
    copy = 2 * copied / Times.of(clock.samples(copies)).median
    del source, targets, copies
    a, b = (torch.randn(square, square, device=device).bfloat16() for _ in range(2))
    flops = 2 * square**3
    bf16 = flops / Times.of(clock.samples([lambda: a @ b.T])).median
    try:
        one = torch.ones((), device=device)
        left, right = (x.to(torch.float8_e4m3fn) for x in (a, b))
        product = clock.samples(
            [lambda: torch._scaled_mm(left, right.T, scale_a=one, scale_b=one, out_dtype=torch.bfloat16)]
        )
    except (RuntimeError, ValueError, NotImplementedError) as error:
        return Ceilings(copy, bf16, None, str(error).splitlines()[0])
    return Ceilings(copy, bf16, flops / Times.of(product).median)

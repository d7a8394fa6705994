"""How a CPU multiplies BF16 factors: the fastest way on the machine at hand that leaves a lane's definition as it is.

    definition   y = the products x_k w_k of BF16 factors, exact in fp32, added in fp32, the sum rounded once to BF16
    "bf16"       torch's BF16 product: quick where the processor has instructions for it (AMX, to a lesser degree
                 AVX512-BF16), several times slower than the other way where it has none
    "fp32"       both factors widened to fp32, which changes no number, torch's fp32 product, one rounding

Both differ by the order of their sums alone: |difference| <= 2 (K - 1) 2^-24 sum_k |x_k w_k| before the rounding.

"auto" times both once per process and shape class (rows of x, and whether the weight lies in memory widened or is
widened at every call) and keeps to the winner. A tie goes to "bf16", and so does everything up to BETTER times slower,
so that noise does not decide. Near that line two processes may still choose differently; their results then differ as
those of two machines do. QCONVERT_PRODUCTS=bf16 or fp32 in the environment decides for "auto".

Widened weights are kept in memory up to KEPT_BYTES a process; beyond that a weight is widened piece by piece, in pieces
that stay in the cache. Products of eight-bit activations are fp32 by definition and have nothing to choose.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from qconvert.errors import UserError

Products = Literal["auto", "bf16", "fp32"]
Way: TypeAlias = Literal["bf16", "fp32"]

VARIABLE = "QCONVERT_PRODUCTS"
CHOICES = ("auto", "bf16", "fp32")
BETTER = 1.3  # how many times faster fp32 must be
KEPT_BYTES = 1 << 30  # widened weights that a process keeps
PIECE = 1 << 20  # numbers widened at a time, 4 MB
CLASSES = ((1, 1), (8, 16), (64, 128), (256, 1 << 62))  # rows that are timed, for products of at most so many
SHAPES = {True: (512, 256), False: (1024, 1024)}  # weights [N, K] that are timed: kept widened or not
REPEATS = 5

_choices: dict[tuple[int, bool], Way] = {}
_lock = threading.Lock()


def widened_product(x: Tensor, weight: Tensor, product: Callable[[Tensor, Tensor], Tensor] = F.linear) -> Tensor:
    """fp32 x [..., K] times a BF16 weight [N, K], widened piece by piece; BF16 [..., N]."""
    step = max(1, PIECE // weight.shape[1])
    if weight.shape[0] <= step:
        return product(x, weight.float()).to(weight.dtype)
    return torch.cat([product(x, part.float()).to(weight.dtype) for part in torch.split(weight, step)], -1)


def choose(asked: Products, rows: int, kept: bool) -> Way:
    """The way for x of so many rows and a weight that is kept widened, or is not."""
    if asked != "auto":
        return asked
    number = next(n for n, (_, most) in enumerate(CLASSES) if rows <= most)
    found = _choices.get((number, kept))
    if found is None:
        with _lock:
            found = _choices.get((number, kept)) or _decide(number, kept)
            _choices[number, kept] = found
    return found


def chosen() -> dict[str, str]:
    """What this process has decided so far, in words, for records."""
    words: dict[str, str] = {}
    for (number, kept), way in sorted(_choices.items()):
        first = 1 if number == 0 else CLASSES[number - 1][1] + 1
        last = CLASSES[number][1]
        rows = f"{first}+" if number == len(CLASSES) - 1 else f"{first}" if first == last else f"{first}-{last}"
        words[f"{rows} rows, weight {'kept' if kept else 'not kept'} in fp32"] = way
    return words


def forget() -> None:
    """Decide anew, as after a change of the number of threads."""
    _choices.clear()


def _decide(number: int, kept: bool) -> Way:
    forced = os.environ.get(VARIABLE, "auto")
    if forced not in CHOICES:
        raise UserError(f"{VARIABLE} names no kind of product", expected=", ".join(CHOICES), found=forced)
    if forced != "auto":
        return cast(Way, forced)
    seconds = measure(CLASSES[number][0], kept)
    return "fp32" if seconds["fp32"] * BETTER <= seconds["bf16"] else "bf16"


def measure(rows: int, kept: bool) -> dict[Way, float]:
    """Seconds of both ways, each the least of several in turn: what else runs only ever adds."""
    x, weight = (torch.ones(*shape, dtype=torch.bfloat16) for shape in ((rows, SHAPES[kept][1]), SHAPES[kept]))
    wide = weight.float()
    ways: dict[Way, Callable[[], Tensor]] = {
        "bf16": lambda: F.linear(x, weight),
        "fp32": lambda: F.linear(x.float(), wide).bfloat16() if kept else widened_product(x.float(), weight),
    }
    seconds: dict[Way, float] = {way: float("inf") for way in ways}
    with torch.inference_mode():
        for _ in range(REPEATS):
            for way, run in ways.items():
                run()  # into the cache, and past whatever a first call sets up
                begin = time.perf_counter()
                run()
                seconds[way] = min(seconds[way], time.perf_counter() - begin)
    return seconds


class WideCopies:
    """Gives leave to keep widened weights up to a number of bytes, and takes back what is no longer needed."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self.limit, self.held = limit, 0
        self._lock = threading.RLock()  # an owner may be collected while it is held

    def ask(self, owner: object, weight: Tensor) -> bool:
        """Whether `owner` may keep this weight in fp32; counted until the owner is gone."""
        size = 4 * weight.numel()
        with self._lock:
            if self.held + size > self.limit:
                return False
            self.held += size
        weakref.finalize(owner, self._free, size)
        return True

    def _free(self, size: int) -> None:
        with self._lock:
            self.held -= size


WIDE = WideCopies()

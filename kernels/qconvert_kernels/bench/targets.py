"""What the figures are held against: the least to ship, and the aim. Where they come from is in docs/design/0016.

A target takes the rows it speaks about, makes a figure of each, and stands or falls with the worst.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qconvert_kernels.bench.ceilings import Ceilings
from qconvert_kernels.bench.measure import Row

LARGE = 16 << 20  # bytes of a weight that is no longer bound by latency
FP8, EXPERTS_FP8 = ("fp8_w8a8", "fp8_w8a16"), ("grouped_fp8_w8a8", "grouped_fp8_w8a16")
Figure = Callable[[Row, Sequence[Row], Ceilings], float | None]


@dataclass(frozen=True)
class Target:
    """`floor` is the least to ship, `aim` what would be good; both are ratios."""

    name: str
    floor: float
    aim: float
    covers: Callable[[Row], bool]
    figure: Figure


@dataclass(frozen=True)
class Outcome:
    """The worst row's figure; None where no row speaks."""

    target: Target
    worst: float | None
    at: str = ""

    @property
    def verdict(self) -> str:
        """In words."""
        if self.worst is None:
            return "not measured"
        return (
            "aim reached" if self.worst >= self.target.aim else "met" if self.worst >= self.target.floor else "missed"
        )


def _of_copy(row: Row, rows: Sequence[Row], ceilings: Ceilings) -> float | None:
    return None if row.bytes_per_s is None else row.bytes_per_s / ceilings.copy


def _of_bf16(row: Row, rows: Sequence[Row], ceilings: Ceilings) -> float | None:
    return None if row.flops_per_s is None else row.flops_per_s / ceilings.bf16


def _over_torch(row: Row, rows: Sequence[Row], ceilings: Ceilings) -> float | None:
    peer = row.peers.get("torch bf16")
    if peer is None or peer.times is None or row.times is None:
        return None
    return peer.times.median / row.times.median


def _over_fp8_experts(row: Row, rows: Sequence[Row], ceilings: Ceilings) -> float | None:
    """Beside the quicker of the two FP8 kernels on the same routes."""
    routes = row.shape.rpartition(", ")[2]
    others = [
        one.times.median
        for one in rows
        if one.kernel in EXPERTS_FP8 and one.tokens == row.tokens and one.times and one.shape.endswith(routes)
    ]
    return None if row.times is None or not others else min(others) / row.times.median


TARGETS = (
    Target(
        "dense FP8 up to 16 tokens, weights of 16 MB and more: share of the copy bandwidth", 0.60, 0.80,
        lambda row: row.kernel in FP8 and row.tokens <= 16 and row.bytes >= LARGE, _of_copy,
    ),
    Target(
        "dense FP8 up to 16 tokens, smaller weights: times as fast as torch's bf16", 1.0, 1.3,
        lambda row: row.kernel in FP8 and row.tokens <= 16 and row.bytes < LARGE, _over_torch,
    ),
    Target(
        "dense W8A8 from 4096 tokens: times torch's bf16 FLOP/s", 1.0, 1.2,
        lambda row: row.kernel == "fp8_w8a8" and row.tokens >= 4096 and row.bytes >= LARGE, _of_bf16,
    ),
    Target(
        "dense W4A16 up to 16 tokens: times as fast as torch's bf16", 2.0, 2.5,
        lambda row: row.kernel == "int4_w4a16" and row.tokens <= 16 and row.bytes >= LARGE // 2, _over_torch,
    ),
    Target(
        "FP8 experts, 16 to 128 tokens: share of the copy bandwidth, experts that were touched", 0.45, 0.65,
        lambda row: row.kernel in EXPERTS_FP8 and 16 <= row.tokens <= 128, _of_copy,
    ),
    Target(
        "INT4 experts, 16 to 128 tokens: times as fast as FP8 experts", 1.0, 1.5,
        lambda row: row.kernel == "grouped_int4_w4a16" and 16 <= row.tokens <= 128, _over_fp8_experts,
    ),
    Target(
        "quantizing activations from 4096 tokens: share of the copy bandwidth", 0.70, 0.85,
        lambda row: row.kernel.endswith("quantize") and row.tokens >= 4096, _of_copy,
    ),
    Target(
        "quantizing weights to FP8, and to INT4 by plain rounding: share of the copy bandwidth", 0.70, 0.85,
        lambda row: row.kernel == "quantize_weights" and not row.shape.endswith("mse"), _of_copy,
    ),
    Target(
        "quantizing weights to INT4 by the search: share of the copy bandwidth", 0.70, 0.85,
        lambda row: row.kernel == "quantize_weights" and row.shape.endswith("mse"), _of_copy,
    ),
)  # fmt: skip


def judge(rows: Sequence[Row], ceilings: Ceilings, targets: Sequence[Target] = TARGETS) -> list[Outcome]:
    """Every target with its worst row."""
    outcomes = []
    for target in targets:
        figures = [(target.figure(row, rows, ceilings), row) for row in rows if target.covers(row)]
        known = [(figure, row) for figure, row in figures if figure is not None]
        if not known:
            outcomes.append(Outcome(target, None))
            continue
        worst, row = min(known, key=lambda pair: pair[0])
        outcomes.append(Outcome(target, worst, f"{row.kernel}, {row.shape}, {row.tokens} tokens"))
    return outcomes

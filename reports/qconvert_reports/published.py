"""One published curve from a mean KL divergence to the other numbers of the same run, so that budget rows agree.

llama.cpp's perplexity README measures Llama-3-8B in five precisions against its 16-bit self, on the same text of some
150,000 tokens (wikitext-2, CUDA; revision f364eb6f, the first row 83330d8c):

    precision          mean KL     other top token    perplexity ratio
    BF16 beside FP16   0.000025         0.261%            1.000404
    q8_0               0.001355         2.326%            1.000425
    q6_K               0.005452         3.969%            1.003490
    q4_K_M             0.031273         8.099%            1.028160
    q2_K               0.445132        28.862%            1.564849

Between two rows the share of other top tokens and the logarithm of the perplexity ratio follow a power of the
divergence (straight lines on log paper), beyond the ends the power of the nearest two rows.

The 99% quantile is not in that table. Where both are printed it is 7.6 to 15.1 times the mean, over four orders of
magnitude of the mean: BF16 beside FP16 8.8 (same README); IQ4_XS 7.6 (llama.cpp #12557); NVFP4 of Qwen3.6-27B 9.2
(#23572) and of Qwen3.6-35B-A3B 10.6 (#25153); AWQ and NVFP4 of Qwen3.5-397B-A17B 14.5 and 15.1 (rtx6kpro,
kld-evaluation). Mixtures of experts have the heavier tails, so TAIL takes the upper end.

How well it fits the models that this tool is for: Qwen3-Coder-Next, the same architecture as Qwen3-Next-80B-A3B, is
published with 0.0217 / 94.0%, 0.0308 / 93.0%, 0.0685 / 89.6% and 0.0746 / 89.4% (mean KL / same top token; two
five-bit and two four-bit builds), Qwen3.6-35B-A3B with 0.0683 / 89.3% and a perplexity ratio of 1.037. The curve says
93.0, 92.0, 88.2, 87.7 and 88.2% and 1.065: at the same divergence these models keep a point more, so the curve fails no
honest one of them.

The default budget's rows over all text are made from one divergence a format by `companions`; a test holds the file
against it. Left out: other models' curves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

# Mean KL in nats, share of tokens with another most likely token, ln(perplexity ratio).
CURVE = (
    (0.00002515, 0.00261, math.log(1.000404)),
    (0.001355, 0.02326, math.log(1.000425)),
    (0.005452, 0.03969, math.log(1.003490)),
    (0.031273, 0.08099, math.log(1.028160)),
    (0.445132, 0.28862, math.log(1.564849)),
)
TAIL = 15.0  # 99% quantile of the divergence / its mean
PART = 1.5  # a domain or a stretch of the context beside the whole: one part in four may have half as much again


@dataclass(frozen=True)
class Companions:
    """What goes with a mean divergence."""

    top1_agreement: float  # share of tokens with the same most likely token
    ppl_ratio: float
    kl_p99: float
    kl_part: float  # mean divergence of one domain, or of one stretch of the context


def companions(kl: float) -> Companions:
    """The other numbers of a run with this mean divergence, kl > 0."""
    other = _along(kl, [(at, share) for at, share, _ in CURVE])
    log_ratio = _along(kl, [(at, loss) for at, _, loss in CURVE])
    return Companions(1 - other, math.exp(log_ratio), TAIL * kl, PART * kl)


def _along(x: float, points: list[tuple[float, float]]) -> float:
    """Power law through the two points around x, or through the nearest two."""
    right = next((number for number in range(1, len(points)) if x <= points[number][0]), len(points) - 1)
    (x0, y0), (x1, y1) = points[right - 1], points[right]
    power = math.log(y1 / y0) / math.log(x1 / x0)
    return float(y0 * (x / x0) ** power)

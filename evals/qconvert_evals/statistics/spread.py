"""How far a linearised estimate may be off: from the influence of each document to the two sides of a 95% interval.

With z_g the influence of document g of G (they sum to zero), se^2 = G / (G - 1) * sum z_g^2 and, for a resample that
takes document g w_g times,   t* = sum w_g z_g / se*,   the interval is

    value - max(t, t*(0.975)) se  ..  value - min(-t, t*(0.025)) se,        t = Student's quantile for G - 1 degrees

Student's t alone misses the truth on the side of a long tail: 8% of 16 documents' mean divergences lie below it where
2.5% should. The bootstrap of t* corrects that side, and takes from the other more than it should; so each side has the
wider of both (the hull). t* is held within REACH times Student's quantile, since a resample of few documents may
hardly vary. Below FEWEST documents there are too few different resamples, and above MOST the skew of a sum is gone:
Student's t alone. Coverage is measured by `benchmarks/interval_coverage.py`: 93 to 97% from 16 documents on.

Seeded, so that the same numbers always give the same interval.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

Array = npt.NDArray[np.float64]

CONFIDENCE = 0.95
ALPHA = 1 - CONFIDENCE
RESAMPLES = 999
SEED = 20260101
FEWEST, MOST = 8, 512
REACH = 2.0


@lru_cache(maxsize=256)
def t_quantile(df: int, confidence: float = CONFIDENCE) -> float:
    """Two-sided quantile of Student's t."""
    return float(stdtrit(df, 0.5 + confidence / 2))


def variance(sums: Array) -> Array:
    """Of estimates with these influence sums [G, E] -> [E]."""
    groups = len(sums)
    found: Array = groups / (groups - 1) * np.square(sums - sums.mean(0)).sum(0)
    return found


def reach(sums: Array) -> tuple[Array, Array]:
    """Distance from each of E estimates to its lower and to its upper bound, from influence sums [G, E]; NaN with
    fewer than two documents."""
    groups, estimates = sums.shape
    if groups < 2:
        return np.full(estimates, np.nan), np.full(estimates, np.nan)
    error, t = np.sqrt(variance(sums)), t_quantile(groups - 1)
    low, high = np.full(estimates, -t), np.full(estimates, t)
    if FEWEST <= groups <= MOST:
        drawn = _studentised(sums - sums.mean(0))  # [R, E]
        tail = round(ALPHA / 2 * (RESAMPLES + 1))
        drawn.partition([tail - 1, RESAMPLES - tail], axis=0)
        low = np.minimum(low, np.maximum(drawn[tail - 1], -REACH * t))
        high = np.maximum(high, np.minimum(drawn[RESAMPLES - tail], REACH * t))
    return high * error, -low * error


def _studentised(centred: Array) -> Array:
    """t* of every resample [RESAMPLES, E]; where it does not vary, as far out as it may be."""
    groups, estimates = centred.shape
    weights = _weights(groups)
    both = weights @ np.concatenate([centred, np.square(centred)], axis=1)  # [R, 2 E]
    total, squares = both[:, :estimates], both[:, estimates:]
    varied = groups / (groups - 1) * (squares - np.square(total) / groups)
    least = 1e-12 * np.square(centred).sum(0)  # of the variance: rounding, not spread
    found: Array = total / np.sqrt(np.maximum(varied, least) + (least == 0))
    return found


@lru_cache(maxsize=32)
def _weights(groups: int) -> Array:
    """How often each resample takes each document [RESAMPLES, G]."""
    drawn = np.random.default_rng(SEED).multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES)
    return drawn.astype(np.float64)

"""Do 95% intervals hold the truth 95% of the time? Simulated texts with a known truth, through the real statistics.

A text is G documents of 64 to 512 tokens, each length as likely as another. A document shifts all of its tokens by a
log-normal factor a of mean 1 and coefficient of variation SPREAD; a token has a log-normal factor e of mean 1 and
coefficient of variation TOKENS (2.9: a standard deviation of 1.5 in the logarithm). The shipped model's documents
spread by 0.1 to 0.5 and are less skewed than these. Kinds of estimates:

    mean            of a e                                    divergence
    difference      of 0.1 a N(0, 1) + e' - 1                 signed, the same sign within a document as often as not
    perplexity      exp(mean of 1.5 + 0.3 (a - 1) + N(0, 1))
    ratio           sum of a e / sum of a e'                  two sums that share their documents
    rms             of N(0, 1) sqrt(a)
    correlation     of u and u + 0.5 a v, both normal
    common share    a token fails with probability 0.28 a     acceptance
    share           0.04 a                                    disagreement of top tokens
    rare share      0.0002 a                                  half of all texts of 16 documents show none
    paired shares   lost with 0.02 a, gained with 0.02 a'     acceptance, candidate - base
    p1 ... p99.9    quantiles of a e

Each is measured with the intervals of this tool ("now") and with those it had before ("before": Student's t for
everything, a percentile bootstrap over documents for quantiles, shares of 0 or 1 counted by token). `shown` is how
often there is an interval at all; coverage is of those shown.

    python benchmarks/interval_coverage.py [--repeats 4000] [--out benchmarks/results/NAME.json]
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import ndtri

from qconvert_evals import statistics as s

SPREAD, TOKENS, SHORTEST, LONGEST, SEED = 0.5, 2.9, 64, 512, 20261201
DOCUMENTS = (8, 16, 32, 64)
LEVELS = {"p1": 0.01, "p10": 0.1, "median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
RESAMPLES = 400  # of the bootstrap that quantiles had
Numbers = s.Array


@dataclass(frozen=True)
class Text:
    """Documents drawn from the population."""

    source: np.random.Generator
    owners: s.Index  # [n], the document of each token
    documents: int

    @classmethod
    def drawn(cls, source: np.random.Generator, documents: int) -> Text:
        """Of random lengths."""
        sizes = source.integers(SHORTEST, LONGEST + 1, documents)
        return cls(source, np.repeat(np.arange(documents), sizes), documents)

    def factors(self) -> Numbers:
        """One a document, spread over its tokens [n]."""
        return lognormal(self.source, SPREAD, self.documents)[self.owners]

    def tokens(self) -> Numbers:
        """One a token [n]."""
        return lognormal(self.source, TOKENS, len(self.owners))

    def normal(self) -> Numbers:
        """[n]."""
        return self.source.normal(size=len(self.owners))

    def happens(self, rate: float) -> Numbers:
        """[n]: 1 where a token has an event of this mean rate, 0 elsewhere."""
        return (self.source.random(len(self.owners)) < np.minimum(rate * self.factors(), 1)).astype(np.float64)


def sigma(variation: float) -> float:
    """Of the logarithm of a log-normal with this coefficient of variation."""
    return math.sqrt(math.log1p(variation**2))


def lognormal(source: np.random.Generator, variation: float, size: int) -> Numbers:
    """Of mean 1."""
    width = sigma(variation)
    found: Numbers = np.exp(source.normal(-(width**2) / 2, width, size))
    return found


Interval = tuple[float | None, float | None]
Measured = dict[str, tuple[Interval, Interval, float]]  # kind -> now, before, truth


def _bounds(one: s.Estimate) -> Interval:
    return one.low, one.high


def by_t(value: float, influence: Numbers, owners: s.Index) -> Interval:
    """What means and ratios had before: Student's t on both sides."""
    error = s.standard_error(influence, owners)
    assert error is not None
    half = s.t_quantile(len(np.unique(owners)) - 1) * error
    return value - half, value + half


def by_bootstrap(values: Numbers, levels: list[float], owners: s.Index) -> list[Interval]:
    """What quantiles had before: percentiles of the quantiles of resampled documents."""
    groups = int(owners.max()) + 1
    order = np.argsort(values, kind="stable")
    ordered, of = values[order], owners[order]
    weights = np.random.default_rng(s.SEED).multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES)
    drawn = np.empty((RESAMPLES, len(levels)))
    for number, row in enumerate(weights.astype(np.int32)):
        running = np.cumsum(row[of])
        drawn[number] = ordered[
            np.searchsorted(running, np.round(np.asarray(levels) * (running[-1] - 1)), side="right")
        ]
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def means(text: Text) -> Measured:
    """Means, differences, ratios and what is made of them."""
    a, e, of = text.factors(), text.tokens(), text.owners
    found: Measured = {"mean": (_bounds(s.mean(a * e, of)), by_t(float((a * e).mean()), a * e - (a * e).mean(), of), 1)}
    shift = lognormal(text.source, SPREAD, text.documents) * text.source.normal(size=text.documents)
    signed = 0.1 * shift[of] + text.tokens() - 1
    found["difference"] = _bounds(s.mean(signed, of)), by_t(float(signed.mean()), signed - signed.mean(), of), 0
    nll = 1.5 + 0.3 * (a - 1) + text.normal()
    old = by_t(float(nll.mean()), nll - nll.mean(), of)
    assert old[0] is not None and old[1] is not None
    mapped = (math.exp(old[0]), math.exp(old[1]))
    found["perplexity"] = _bounds(s.mean(nll, of).mapped(math.exp)), mapped, math.exp(1.5)
    top, bottom = a * e, a * text.tokens()
    share = float(top.sum() / bottom.sum())
    influence = (top - share * bottom) / bottom.mean()
    found["ratio"] = _bounds(s.ratio(top, bottom, of)), by_t(share, influence, of), 1
    x = text.normal() * np.sqrt(a)
    square = x * x
    old = by_t(float(square.mean()), square - square.mean(), of)
    assert old[0] is not None and old[1] is not None
    roots = (math.sqrt(max(0.0, old[0])), math.sqrt(old[1]))
    found["rms"] = _bounds(s.root_mean_square(x, of)), roots, 1
    u = text.normal()
    v = u + 0.5 * a * text.normal()
    truth = 1 / math.sqrt(1 + 0.25 * (1 + SPREAD**2))
    z, w = (u - u.mean()) / u.std(), (v - v.mean()) / v.std()
    r = float((z * w).mean())
    found["correlation"] = _bounds(s.correlation(u, v, of)), by_t(r, z * w - r * (z * z + w * w) / 2, of), truth
    return found


def shares(text: Text) -> Measured:
    """Shares of tokens, and the difference of two."""
    of, ones, found = text.owners, np.ones(len(text.owners)), {}
    for name, rate in (("common share", 0.28), ("share", 0.04), ("rare share", 0.0002)):
        event = text.happens(rate)
        share = float(event.mean())
        old = s.wilson(0, len(of)) if share == 0 else by_t(share, event - share, of)
        found[name] = _bounds(s.proportion(event, ones, of)), old, _mean_rate(rate)
    lost, gained = text.happens(0.02), text.happens(0.02)
    gained *= 1 - lost
    change, kept = gained - lost, 1 - lost - gained
    truth = _mean_rate(0.02) * (1 - _mean_rate(0.02)) - _mean_rate(0.02)
    paired = s.difference(kept + gained, kept + lost, of)
    found["paired shares"] = _bounds(paired), by_t(float(change.mean()), change - change.mean(), of), truth
    return found


def quantiles(text: Text) -> Measured:
    """Quantiles of the divergence."""
    values, found = text.factors() * text.tokens(), {}
    width = math.hypot(sigma(SPREAD), sigma(TOKENS))
    levels = list(LEVELS.values())
    now, before = s.quantiles(values, levels, text.owners), by_bootstrap(values, levels, text.owners)
    for name, one, old in zip(LEVELS, now, before, strict=True):
        truth = math.exp(width * float(ndtri(LEVELS[name])) - width**2 / 2)
        found[name] = _bounds(one), old, truth
    return found


def _mean_rate(rate: float) -> float:
    """Of min(rate a, 1) over documents."""
    if rate not in RATES:
        factors = np.exp(sigma(SPREAD) * ndtri((np.arange(1_000_000) + 0.5) / 1_000_000) - sigma(SPREAD) ** 2 / 2)
        RATES[rate] = float(np.minimum(rate * factors, 1).mean())
    return RATES[rate]


RATES: dict[float, float] = {}
PARTS: tuple[Callable[[Text], Measured], ...] = (means, shares, quantiles)


def coverage(
    documents: int, repeats: int, parts: tuple[Callable[[Text], Measured], ...] = PARTS, seed: int = SEED
) -> dict[str, dict[str, float]]:
    """kind -> shares of texts: `now` and `before` cover, miss from above and below, and show an interval at all."""
    counts: dict[str, dict[str, int]] = {}
    source = np.random.default_rng((seed, documents))
    for _ in range(repeats):
        for part in parts:
            for kind, (now, before, truth) in part(Text.drawn(source, documents)).items():
                row = counts.setdefault(kind, dict.fromkeys(("now", "too_high", "too_low", "shown", "before"), 0))
                row["before"] += before[0] is not None and before[1] is not None and before[0] <= truth <= before[1]
                if now[0] is not None and now[1] is not None:
                    row["shown"] += 1
                    row["too_high"] += now[0] > truth
                    row["too_low"] += now[1] < truth
                    row["now"] += now[0] <= truth <= now[1]
    return {kind: _shares(row, repeats) for kind, row in counts.items()}


def _shares(row: dict[str, int], repeats: int) -> dict[str, float]:
    shown = max(1, row["shown"])
    found = {name: row[name] / shown for name in ("now", "too_high", "too_low")}
    return {**found, "shown": row["shown"] / repeats, "before": row["before"] / repeats}


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description="Coverage of every kind of interval by simulation")
    parser.add_argument("--repeats", type=int, default=4000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    settings: dict[str, Any] = {"spread": SPREAD, "tokens": TOKENS, "lengths": [SHORTEST, LONGEST], "seed": SEED}
    found: dict[str, Any] = {**settings, "repeats": options.repeats, "coverage": {}}
    for documents in DOCUMENTS:
        found["coverage"][documents] = table = coverage(documents, options.repeats)
        print(f"{documents} documents      before    now  (too high, too low)  shown")
        for kind, row in table.items():
            sides = f"({row['too_high']:.3f}, {row['too_low']:.3f})"
            print(f"  {kind:18} {row['before']:8.3f} {row['now']:6.3f}  {sides:19} {row['shown']:6.3f}", flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

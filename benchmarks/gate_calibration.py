"""Is the gate right? Simulated comparisons with a known truth, through the real statistics and the real judge.

Three kinds of rows; documents are not alike, each shifts all of its tokens together:

    mean         logits.kl_mean          64 documents x 64 tokens; log-normal per token, documents spread by half
    acceptance   mtp.acceptance_greedy   64 documents x 64 drafts, paired; 4% flips, +-1 pp by document
    benchmark    bench.simulated.acc     1,319 questions (GSM8K's number), paired; 5% flips

The true drift is put at the bound + x MDE, where MDE is the least distance that a test at 2.5% finds 4 times in 5,
(t(0.975) + z(0.8)) standard errors of the estimate at that drift, and the shares of pass, inconclusive and fail are
counted. What is asked of the gate:

    truth on the bound        FAIL at most 2.5%; with a bound of zero that is "no true change" at its hardest
    truth at bound + MDE      FAIL or INCONCLUSIVE at least 80%
    no true change            under the bounds of the default budget, FAIL of any row at most 2.5%

    python benchmarks/gate_calibration.py [--repeats 4000] [--out benchmarks/results/NAME]      JSON and SVG
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from qconvert_evals import statistics
from qconvert_evals.metrics.found import Found
from qconvert_evals.results import LaneIdentity, Measurement, Results
from qconvert_evals.tasks.measure import SAME, Values
from qconvert_evals.tasks.paired import pair
from qconvert_reports.budget import Budget, parse_budget
from qconvert_reports.drift import judge

ALPHA, POWER, SEED = 0.025, 0.8, 20261121
PLACES = (-2.0, -1.5, -1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # in MDEs beyond the bound
Draw = Callable[[np.random.Generator, float], list[Measurement]]
LANES = [
    LaneIdentity(name, role, name, None, {}, {}, {}, {}) for name, role in (("bf16", "base"), ("fp8", "candidate"))
]
DOCUMENTS, TOKENS, QUESTIONS = 64, 64, 1319
OWNERS = np.repeat(np.arange(DOCUMENTS), TOKENS)
BASE_KL, FLIPS, SHIFT, ACCEPTED = 0.0016, 0.04, 0.01, 0.72
TASK_FLIPS, RIGHT = 0.05, 0.85


@dataclass(frozen=True)
class Row:
    """One kind of budget row: how its data come about given the true drift, and the bound on that drift."""

    name: str
    measurement: str
    slice: str
    bound: float  # allowed drift: the mean itself, or the loss against BF16
    key: str
    sign: float  # of the limit in the budget
    draw: Draw
    groups: int
    nothing: float  # the drift of an honest conversion: "no true change"

    def budget(self, bound: float | None = None) -> Budget:
        """The row alone, in the budget's own language."""
        limit = self.sign * (self.bound if bound is None else bound)
        row = f'measurement = "{self.measurement}"\nslice = "{self.slice}"\n{self.key} = {limit!r}\nwhy = "simulated"'
        return parse_budget(f'version = 1\n[x]\nlanes = ["fp8"]\n[[x.rows]]\n{row}', "simulated")


def by_document(source: np.random.Generator, spread: float) -> np.ndarray[Any, Any]:
    """Log-normal factors of mean 1 and the given coefficient of variation, one a document."""
    sigma = np.sqrt(np.log1p(spread**2))
    return np.exp(source.normal(-(sigma**2) / 2, sigma, DOCUMENTS))


def mean_row(source: np.random.Generator, drift: float) -> list[Measurement]:
    """Mean KL with true mean `drift`."""
    tokens = np.exp(source.normal(-(1.5**2) / 2, 1.5, len(OWNERS)))
    values = drift * by_document(source, 0.5)[OWNERS] * tokens
    found = Found("fp8")
    found.add("logits.kl_mean", "all", "nats", statistics.mean(values, OWNERS))
    return found.measurements


def acceptance_row(source: np.random.Generator, drift: float) -> list[Measurement]:
    """Acceptance of two lanes at the same anchors; the candidate truly loses `drift` of them."""
    shift = SHIFT * source.choice((-1.0, 1.0), DOCUMENTS)
    lost = FLIPS / 2 + np.maximum(shift, 0) + max(drift, 0.0) * by_document(source, 0.5)
    gained = FLIPS / 2 + np.maximum(-shift, 0) + max(-drift, 0.0)
    level = np.clip(source.normal(ACCEPTED, 0.12, DOCUMENTS), 0.3, 0.85)  # accepted by both
    draws = source.random(len(OWNERS))
    edges = [part[OWNERS] for part in (lost, lost + gained, lost + gained + level * (1 - lost - gained))]
    base = (draws < edges[0]) | ((draws >= edges[1]) & (draws < edges[2]))
    own = (draws >= edges[0]) & (draws < edges[2])
    ones, at, name = np.ones(len(OWNERS)), "position=1", "mtp.acceptance_greedy"
    found, other = Found("fp8"), Found("bf16")
    other.add(name, at, "fraction", statistics.proportion(base.astype(float), ones, OWNERS))
    found.add(name, at, "fraction", statistics.proportion(own.astype(float), ones, OWNERS))
    found.add(f"{name}_difference", at, "fraction", statistics.mean(own.astype(float) - base, OWNERS))
    return [*other.measurements, *found.measurements]


def benchmark_row(source: np.random.Generator, drift: float) -> list[Measurement]:
    """Answers of two lanes to the same questions; the candidate truly loses `drift` of its score."""
    lost, gained = (TASK_FLIPS + drift) / 2, (TASK_FLIPS - drift) / 2
    kinds = source.choice(4, QUESTIONS, p=(lost, gained, RIGHT - lost, 1 - RIGHT - gained))
    answers = [((kinds == 0) | (kinds == 2)), ((kinds == 1) | (kinds == 2))]  # base, candidate
    ones, numbers = np.ones(QUESTIONS), np.arange(QUESTIONS)
    values = [Values("proportion", one.astype(float), ones, numbers, False, SAME) for one in answers]
    found, other = Found("fp8"), Found("bf16")
    for to, one in zip((other, found), values, strict=True):
        to.add("bench.simulated.acc", "all", "fraction", one.estimate())
    found.add("bench.simulated.acc_difference", "all", "fraction", pair(*values).difference)
    return [*other.measurements, *found.measurements]


LOSS = ("min_difference_from_base", -1.0)
ROWS = (
    Row("mean", "logits.kl_mean", "all", 0.02, "max", 1.0, mean_row, DOCUMENTS, BASE_KL),
    Row("acceptance", "mtp.acceptance_greedy", "position=1", 0.02, *LOSS, acceptance_row, DOCUMENTS, 0.0),
    Row("benchmark", "bench.simulated.acc", "all", 0.01, *LOSS, benchmark_row, QUESTIONS, 0.0),
)


def shares(row: Row, drift: float, repeats: int, source: np.random.Generator, budget: Budget) -> dict[str, float]:
    """How often each status comes out at this true drift; "improved" counts as the pass that it is."""
    seen: Counter[str] = Counter()
    for _ in range(repeats):
        verdict = judge(Results(lanes=LANES, measurements=row.draw(source, drift)), budget)
        seen[verdict.status] += 1
    return {status: seen[status] / repeats for status in ("pass", "inconclusive", "fail")}


def detectable(row: Row, repeats: int, source: np.random.Generator) -> float:
    """The least distance beyond the bound that is found with POWER; noise grows with the drift, so by iteration."""
    mde = 0.0
    for _ in range(3):
        estimates = [_estimate(row, row.draw(source, row.bound + mde)) for _ in range(repeats)]
        t = statistics.t_quantile(row.groups - 1, 1 - 2 * ALPHA)
        mde = float((t + NormalDist().inv_cdf(POWER)) * np.std(estimates))
    return mde


def _estimate(row: Row, measurements: list[Measurement]) -> float:
    name = row.measurement + ("" if row.key == "max" else "_difference")
    (value,) = (one.value for one in measurements if one.name == name)
    assert value is not None
    return value


def calibrate(repeats: int, places: tuple[float, ...] = PLACES, seed: int = SEED) -> dict[str, Any]:
    """Every row at every place, and all rows together without any true change."""
    found: dict[str, Any] = {"alpha": ALPHA, "power": POWER, "seed": seed, "repeats": repeats, "rows": {}}
    for number, row in enumerate(ROWS):
        source = np.random.default_rng((seed, number))
        mde = detectable(row, max(400, repeats // 4), source)
        curve = [
            {"x": x, "drift": row.bound + x * mde, **shares(row, row.bound + x * mde, repeats, source, row.budget())}
            for x in places
            if row.key != "max" or row.bound + x * mde > 0
        ]
        nothing = shares(row, row.nothing, repeats, source, row.budget())
        found["rows"][row.name] = {"bound": row.bound, "mde": mde, "curve": curve, "no_true_change": nothing}
        if row.key != "max":
            strict = replace(row, bound=0.0)
            found["rows"][row.name]["bound_of_zero"] = {
                "no_true_change": shares(strict, 0.0, repeats, source, strict.budget()),
                "drop_of_mde": shares(strict, mde, repeats, source, strict.budget()),
            }
    found["all_rows_no_true_change"] = together(repeats, np.random.default_rng((seed, len(ROWS))))
    return found


def together(repeats: int, source: np.random.Generator) -> dict[str, float]:
    """One verdict over all rows where nothing has truly changed."""
    sections = [row.budget().sections[0] for row in ROWS]
    budget = replace(ROWS[0].budget(), sections=tuple(sections))
    seen: Counter[str] = Counter()
    for _ in range(repeats):
        rows = [one for row in ROWS for one in row.draw(source, row.nothing)]
        seen[judge(Results(lanes=LANES, measurements=rows), budget).status] += 1
    return {status: seen[status] / repeats for status in ("pass", "inconclusive", "fail")}


def draw_curves(found: dict[str, Any], path: Path) -> None:
    """One panel a row: shares of pass, inconclusive and fail over the true drift."""
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "qconvert"})
    figure = Figure(figsize=(11, 3.1), layout="constrained")
    colours = {"pass": "#17784a", "inconclusive": "#c98a1b", "fail": "#b42318"}
    panels = figure.subplots(1, len(found["rows"]), sharey=True)
    for axes, (name, row) in zip(panels, found["rows"].items(), strict=True):
        places = [one["x"] for one in row["curve"]]
        for status, colour in colours.items():
            axes.plot(places, [one[status] for one in row["curve"]], "o-", ms=3, color=colour, label=status)
        axes.axhline(ALPHA, color="#9aa3ad", lw=0.8, ls=":")
        axes.axhline(POWER, color="#9aa3ad", lw=0.8, ls=":")
        axes.axvline(0, color="#9aa3ad", lw=0.8)
        axes.set_title(f"{name}: bound {row['bound']:g}, MDE {row['mde']:.2g}", fontsize=10)
        axes.set_xlabel("true drift beyond the bound, in MDEs")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel(f"share of {found['repeats']:,} runs")
    figure.axes[0].legend(frameon=False, fontsize=9)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Calibrate, write JSON and SVG, print the numbers that matter."""
    parser = argparse.ArgumentParser(description="Calibration of the gate by simulation")
    parser.add_argument("--repeats", type=int, default=4000)
    parser.add_argument("--out", type=Path, help="path without suffix for the JSON and the SVG")
    options = parser.parse_args()
    found = calibrate(options.repeats)
    for name, row in found["rows"].items():
        at = {one["x"]: one for one in row["curve"]}
        print(f"{name:11} MDE {row['mde']:.4g}  on the bound: fail {at[0.0]['fail']:.3f}, pass {at[0.0]['pass']:.3f}"
              f"  at +MDE: fail {at[1.0]['fail']:.3f}, fail or open {1 - at[1.0]['pass']:.3f}"
              f"  no change: {row['no_true_change']}  bound 0: {row.get('bound_of_zero')}")  # fmt: skip
    print("all rows, no true change:", found["all_rows_no_true_change"])
    if options.out is not None:
        options.out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        draw_curves(found, options.out.with_suffix(".svg"))


if __name__ == "__main__":
    main()

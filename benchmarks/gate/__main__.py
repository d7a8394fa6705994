"""How often the gate errs: documents of real results drawn anew, through every row of the default budget.

The shipped model is converted and compared once as `qconvert demo` does it. Then its documents are drawn with
replacement (`drawing`) and each draw is judged as a comparison of its own (`judging`), RUNS times a lane:

    honest      shares of PASS, FAIL and INCONCLUSIVE of the whole verdict and of every row
    coverage    how often a row's 95% interval holds the value of the whole record, which is the truth of the draws
    faults      five graded faults, the smallest strength that FAILs four times in five (`graded_faults`)

What it cannot say: documents are those of one small model and of the shipped texts, so the shares hold for other models
as far as their documents differ as these do. Asked of the gate are PASS at least 99% and no FAIL in 3,000 honest draws.

    python -m benchmarks.gate [--runs 3000] [--out FILE.json] [--ship FILE.json]

`--out` writes everything, `--ship` the small record that reports print (reports/qconvert_reports/calibration.json).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gate.graded_faults import FAULTS, Search, catching, search
from benchmarks.gate.judging import STATUSES, Gate
from qconvert.quantization import quantize
from qconvert_evals.compare import compare
from qconvert_evals.results import Results
from qconvert_evals.small_model_files import small_model_path
from qconvert_reports.budget import Budget, default_budget
from qconvert_reports.cli.demo import SCHEMES

SEED = 20261201
FAULT_TOKENS = 8192
LEAST_PASS = 0.99


def honest(
    results: Results, states: list[object], budget: Budget, runs: int, seed: int, workers: int
) -> dict[str, Any]:
    """Shares of the verdicts of each candidate."""
    found = {}
    for number, lane in enumerate(one.name for one in results.lanes if one.role == "candidate"):
        started = time.perf_counter()
        gate = Gate(results, states, lane, budget)
        outcomes = gate.outcomes(runs, seed + number, workers)
        found[lane] = {
            **{status: outcomes.share(status) for status in STATUSES},
            "seconds_a_draw": round((time.perf_counter() - started) / runs, 4),
            "rows": outcomes.row_shares(),
        }
    return found


def described(name: str, one: Search) -> dict[str, Any]:
    """A fault at its limit, as records hold it."""
    row = catching(one.confirmed)
    return {
        "name": name, "what": FAULTS[name].what, "limit": one.limit, "fail": one.confirmed.share("fail"),
        "draws": one.confirmed.runs, "row": f"{row['measurement']} ({row['slice']})", "row_fails": row["fail"],
        "value": one.value, "without": one.clean, "searched": dict(sorted(one.shares.items())),
    }  # fmt: skip


def calibrate(runs: int, fault_runs: int, workers: int, seed: int = SEED) -> dict[str, Any]:
    """Everything."""
    base, budget = small_model_path(), default_budget()
    with tempfile.TemporaryDirectory(prefix="qconvert-gate-") as folder:
        folders = {name: Path(folder) / name for name in SCHEMES}
        for name, scheme in SCHEMES.items():
            quantize(base, folders[name], scheme=scheme)
        states: list[object] = []
        results = compare(base, folders, keep=states)
        lanes = honest(results, states, budget, runs, seed, workers)
        limits = search(base, folders["fp8"], budget, FAULT_TOKENS, fault_runs, seed, workers) if fault_runs else {}
    schemes = {one.name: str(one.recipe.get("scheme", "")) for one in results.lanes if one.role == "candidate"}
    return {
        "model": "the shipped small model",
        "parameters": results.figures["model"]["parameters"],
        "tokens": results.tool["tokens"],
        "documents": results.tool["documents"],
        "runs": runs,
        "seed": seed,
        "budget": budget.digest,
        "schemes": schemes,
        "lanes": lanes,
        "faults": [described(name, one) for name, one in limits.items()],
        "fault_tokens": FAULT_TOKENS,
    }


def shipped(found: dict[str, Any]) -> dict[str, Any]:
    """What reports print: without what is only of use to whoever improves the gate."""
    lanes = {
        name: {key: one for key, one in lane.items() if key != "seconds_a_draw"}
        for name, lane in found["lanes"].items()
    }
    faults = [{key: one for key, one in fault.items() if key != "searched"} for fault in found["faults"]]
    return {**found, "lanes": lanes, "faults": faults}


def main() -> None:
    """Calibrate, print, write; exit code 1 where the gate errs more often than it may."""
    parser = argparse.ArgumentParser(description="How often the gate errs")
    parser.add_argument("--runs", type=int, default=3000, help="draws of an honest conversion, a lane")
    parser.add_argument("--fault-runs", type=int, default=400, help="draws of each fault at its limit; 0: no faults")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes; default: cores")
    parser.add_argument("--out", type=Path, help="everything as JSON")
    parser.add_argument("--ship", type=Path, help="what reports print, as JSON")
    options = parser.parse_args()
    found = calibrate(options.runs, options.fault_runs, options.workers)
    for lane, shares in found["lanes"].items():
        print(lane, {status: shares[status] for status in STATUSES}, f"{shares['seconds_a_draw']} s a draw")
        for row in shares["rows"][:5]:
            print("   ", row)
    for fault in found["faults"]:
        print(f"{fault['name']:8} limit {fault['limit']:.4g}: FAIL {fault['fail']:.1%} by {fault['row']}")
    for path, content in ((options.out, found), (options.ship, shipped(found))):
        if path is not None:
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    good = all(lane["pass"] >= LEAST_PASS and lane["fail"] == 0 for lane in found["lanes"].values())
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()

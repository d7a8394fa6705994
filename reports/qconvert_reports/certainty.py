"""How sure is this verdict? What reports print about the gate itself, beside the numbers that it judged.

    margins       how near the nearest bound was (`verdict_view`)
    calibration   how often this budget passes and fails an honest conversion, and the smallest faults that it catches
                  four times in five, measured by drawing the documents of real results anew; calibration.json, which
                  `python -m benchmarks.gate --ship` writes
    provisional   whether the default budget's bounds have been held against a large pair (`recorded`)
    text          a shortfall of text, and up to which position of the context anything was measured

The calibration speaks about one version of the budget; its digest tells whether it is the one that judged.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from typing import Any

from qconvert_evals.results import Results
from qconvert_reports.budget import DEFAULT, default_budget
from qconvert_reports.labels import label, show_slice
from qconvert_reports.recorded import LARGE, recorded_pairs
from qconvert_reports.verdict_view import margin_line
from qconvert_reports.view import Cell, Table

CALIBRATION = "calibration.json"
SHORT = 0.99  # of the tokens asked for; shares of domains are rounded down
PROVISIONAL = (
    "Provisional: the bounds are argued from published figures of other models, not yet from a recorded pair of this "
    "size (no pair of {large:.0f} billion parameters or more is on record)."
)


@dataclass(frozen=True)
class Certainty:
    """Sentences, and the tables behind them."""

    sentences: list[str] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    provisional: bool = False


def certainty(results: Results) -> Certainty:
    """Of one judged record."""
    sentences, tables = [], []
    if results.verdict is not None and (line := margin_line(results.verdict)):
        sentences.append(f"{line[0].upper()}{line[1:]}. A number counted in full has none.")
    budget = results.figures.get("budget") or {}
    by_default = budget.get("source") == DEFAULT or budget.get("digest") == default_budget().digest
    found = calibration()
    if found is not None and by_default:
        sentences += _calibrated(found, budget.get("digest"))
        tables = _tables(found)
    provisional = by_default and not any(one["parameters"] >= LARGE for one in recorded_pairs())
    if provisional:
        sentences.append(PROVISIONAL.format(large=LARGE / 1e9))
    return Certainty(sentences + text_lines(results), tables, provisional)


def text_lines(results: Results) -> list[str]:
    """A shortfall of text, and how far along the context it reached; nothing where there is nothing to say."""
    tool, model, lines = results.tool, results.figures.get("model") or {}, []
    asked, tokens = tool.get("tokens_asked"), tool.get("tokens")
    if isinstance(asked, int) and isinstance(tokens, int) and tokens < SHORT * asked:
        lines.append(
            f"Less text than asked for: {tokens:,} tokens were measured of {asked:,}; the documents hold no more. "
            "Give more text with --data."
        )
    longest, context = tool.get("longest_sequence"), model.get("context")
    if isinstance(longest, int) and isinstance(context, int) and longest < context:
        lines.append(
            f"Positions up to {longest - 1:,} were measured, of a context of {context:,} tokens; what lies beyond is "
            "not measured, and not passed."
        )
    return lines


@lru_cache(maxsize=1)
def calibration() -> dict[str, Any] | None:
    """The shipped record, None where there is none."""
    path = files("qconvert_reports").joinpath(CALIBRATION)
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _calibrated(found: dict[str, Any], judged_by: str | None) -> list[str]:
    """What the calibration says, and whether it speaks about this budget."""
    what = (
        f"{found['model']} ({found['parameters'] / 1e6:.1f} million parameters, {found['tokens']:,} tokens of "
        f"{found['documents']} documents)"
    )
    shares = "; ".join(
        f"{found['schemes'].get(name, name)}: PASS {_percent(one['pass'], found['runs'])}, FAIL "
        f"{_percent(one['fail'], found['runs'])}, INCONCLUSIVE {_percent(one['inconclusive'], found['runs'])}"
        for name, one in found["lanes"].items()
    )
    lines = [
        f"How often this budget errs was measured on {what} by drawing its documents anew {found['runs']:,} times. An "
        f"honest conversion came out: {shares}. With fewer documents it is inconclusive more often."
    ]
    if found["faults"]:
        limits = ", ".join(f"{one['name']} {one['limit']:.2g}" for one in found["faults"])
        lines.append(
            f"The smallest faults that FAIL four times in five, with {found['fault_tokens']:,} tokens: {limits}."
        )
    if judged_by != found["budget"]:
        lines.append("These shares were measured with another version of the budget than the one that judged here.")
    return lines


def _percent(share: float, runs: int) -> str:
    """A share of a number of runs; none of them is not never."""
    return f"0 of {runs:,}" if share == 0 else f"{100 * share:.2f}%".replace("100.00%", "100%")


def _tables(found: dict[str, Any]) -> list[Table]:
    """Faults at their limits, and every row's shares."""
    faults = Table("The smallest faults caught four times in five", ("fault", "what", "limit", "FAIL", "caught by"))
    for one in found["faults"]:
        cells = (one["name"], one["what"], f"{one['limit']:.3g}", f"{one['fail']:.1%}", one["row"])
        faults.rows.append([Cell(text) for text in cells])
    rows = Table(
        "Rows, an honest conversion", ("lane", "check", "PASS", "FAIL", "INCONCLUSIVE", "interval holds truth")
    )
    for name, lane in found["lanes"].items():
        for one in lane["rows"]:
            held = "–" if one["coverage"] is None else f"{one['coverage']:.1%}"
            shares = [f"{one[status]:.2%}" for status in ("pass", "fail", "inconclusive")]
            check = f"{label(one['measurement'])} ({show_slice(one['slice'])})"
            rows.rows.append([Cell(text) for text in (name, check, *shares, held)])
    return [table for table in (faults, rows) if table.rows]

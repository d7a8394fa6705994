"""report.html: one self-contained page, verdict first.

The template is filled with autoescape on and undefined names as errors; no value is ever marked safe. Styles stand in
the page, plots are images in data URIs, and the page's own content policy forbids scripts and every load from
elsewhere, so a hostile tensor or document name is text and nothing more. Left out: scripts. Folding is done by
<details>, which also prints.
"""

from __future__ import annotations

from typing import Any

from qconvert_evals.results import Measurement, Results
from qconvert_reports import plots, view
from qconvert_reports.baseline import Against
from qconvert_reports.benchmarks_view import benchmark_tables
from qconvert_reports.certainty import certainty
from qconvert_reports.decision import THIN
from qconvert_reports.labels import label, show_slice, show_value
from qconvert_reports.page import fill_page
from qconvert_reports.position_plots import along_context
from qconvert_reports.verdict_view import WORDS, gate_line, groups, headline, show_margin

TILES = (
    ("logits.kl_mean", ("all",)),
    ("logits.top1_agreement", ("all",)),
    ("router.set_match", ("feed=local", "all")),
    ("mtp.acceptance_greedy", ("position=1",)),
    ("mtp.accept_length", ("all",)),
    ("mtp.accept_length_live", ("all",)),
    ("weights.relative_error", ("all",)),
)


def render_html(results: Results, against: Against | None = None) -> str:
    """The page as text, with what changed against a baseline."""
    filters = {
        "visible": visible, "value": show_value, "slice": show_slice, "label": label, "gate": gate_line,
        "margin": show_margin,
    }  # fmt: skip
    return fill_page("report.html", filters, **_context(results, against))


def _context(results: Results, against: Against | None) -> dict[str, Any]:
    index = view.Index(results)
    status = results.verdict.status if results.verdict else "inconclusive"
    return {
        "results": results,
        "status": status,
        "status_word": WORDS[status],
        "headline": headline(results.verdict, results) if results.verdict else "This record has not been judged.",
        "certainty": certainty(results),
        "thin": THIN,
        "words": WORDS,
        "groups": groups(results),
        "budget": results.figures.get("budget") or {},
        "cards": [_card(index, lane) for lane in index.candidates],
        "colours": {one.name: plots.lane_colour(results, one.name) for one in results.lanes},
        "identities": [(one, view.identity(one)) for one in results.lanes],
        "sections": _sections(index),
        "worst_tokens": _worst_first(results.figures.get("worst_tokens") or []),
        "weights_worst": results.figures.get("weights_worst") or [],
        "against": against,
        "index": index,
    }


def _worst_first(tokens: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All lanes together; a token without a finite divergence is worse than any number."""
    return sorted(tokens, key=lambda one: float("-inf") if one["kl"] is None else -one["kl"])


def _card(index: view.Index, lane: str) -> dict[str, Any]:
    """The few numbers that a reader wants first, each beside what it would be without quantization."""
    tiles = []
    for name, slices in TILES:
        one = index.first(name, lane, slices)
        if one is not None:
            tiles.append(
                {"label": label(name), "at": one.slice, "cell": view.as_cell(one), "beside": _beside(index, one)}
            )
    identity = next(item for item in index.results.lanes if item.name == lane)
    verdict = index.results.verdict
    rows = [row.status for row in verdict.rows if row.lane == lane] if verdict else []
    status = next((one for one in ("fail", "inconclusive", "pass") if one in rows), "inconclusive")
    return {"lane": lane, "status": status, "scheme": identity.recipe.get("scheme", ""), "tiles": tiles}


def _beside(index: view.Index, one: Measurement) -> str:
    base = index.by_key.get((one.name, index.base, one.slice))
    if base is not None and base.value is not None:
        return f"BF16 {show_value(base.value, base.unit)}"
    return "" if one.noise_floor is None else f"noise floor {show_value(one.noise_floor, one.unit)}"


def _sections(index: view.Index) -> dict[str, dict[str, Any]]:
    """Plots and tables of each part of the page."""
    results = index.results
    errors = next((name for name in ("hidden.relative_error", "router.kl") if index.slices(name, "layer", "feed")), "")
    return {
        "logits": {
            "plots": [*plots.kl_histogram(results), *plots.kl_by_position(results)],
            "tables": [view.domain_table(index), view.logits_table(index)],
        },
        "position": {"plots": along_context(results), "tables": [view.position_table(index)]},
        "router": {
            "plots": [
                *plots.by_layer(results, "router.set_match", "Same set of experts", ""),
                *(plots.by_layer(results, errors, label(errors), "") if errors else []),
            ],
            "tables": view.router_tables(index),
        },
        "mtp": {"plots": plots.acceptance(results), "tables": view.acceptance_tables(index)},
        "benchmarks": {"plots": [], "tables": benchmark_tables(index)},
        "weights": {"plots": [], "tables": [view.weights_table(index)]},
        "others": {"plots": [], "tables": view.other_tables(index)},
    }


def visible(text: str) -> str:
    """A token as text that can be seen: spaces at the ends, line ends and tabs get a sign."""
    shown = text.replace("\r", "␍").replace("\n", "⏎").replace("\t", "⇥")
    inner = shown.strip(" ")
    if not inner:
        return "␣" * len(shown) or "(empty)"
    left = len(shown) - len(shown.lstrip(" "))
    return "␣" * left + inner + "␣" * (len(shown) - left - len(inner))

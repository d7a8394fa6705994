"""Which tensors stand behind a number about weights that did not pass, so that a gate line names them.

The measurements only hold the largest error or a count; the names are in the figures that `compare` writes beside them:

    weights_worst, weights_worst_blocks    [{lane, tensor, relative_error, block: [row, column], ...}], worst first
    weights_kept_changed, weights_missing, weights_unloadable    {lane: [tensor]}

Left out: culprits of logits or routes. What moved them is in the per-layer plots, not in one name.
"""

from __future__ import annotations

from typing import Any

from qconvert_evals.results import Measurement

NAMED = 3  # how many tensors a gate line names
RANKED = {"weights.relative_error_max": "weights_worst", "weights.block_error_max": "weights_worst_blocks"}
LISTED = {
    "weights.kept_changed": "weights_kept_changed",
    "weights.missing_tensors": "weights_missing",
    "weights.unloadable": "weights_unloadable",
}


def named_tensors(figures: dict[str, Any], one: Measurement) -> str:
    """`: model.layers.0....weight, tile at row 0, column 128`, or nothing where the record names no tensor."""
    if one.slice != "all":
        return ""
    if one.name in LISTED:
        names = list((figures.get(LISTED[one.name]) or {}).get(one.lane, ()))
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return f": {', '.join(names[:NAMED])}{more}" if names else ""
    ranked = figures.get(RANKED.get(one.name, "")) or []
    worst = next((row for row in ranked if row["lane"] == one.lane), None)
    if worst is None:
        return ""
    tile = worst.get("block") if one.name == "weights.block_error_max" else None
    return f": {worst['tensor']}" + (f", tile at row {tile[0]}, column {tile[1]}" if tile else "")

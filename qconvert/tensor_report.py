"""`qconvert_tensors.csv`: what became of each quantized tensor; and the summary of it in manifest and terminal.

    name, scheme, method, tokens, relative_error, note       one line a tensor, in the order of the files

method is the one that was used, which the note explains where it is not the one that was asked for. tokens: how many
the tensor's inputs were calibrated on; empty without calibration. relative_error: ||W' - W|| / ||W||, Frobenius. That
of gptq is larger than that of plain rounding by design: it makes outputs better, not weights.
"""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from qconvert.families import Family

WORST = 10  # tensors named in the summary
DIGITS = 6


@dataclass(frozen=True)
class TensorRow:
    """One line."""

    name: str
    scheme: str
    method: str
    tokens: int | None
    relative_error: float
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data for the record of a shard."""
        return asdict(self)


def to_csv(rows: Sequence[TensorRow]) -> str:
    """The file."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(TensorRow)])
    for row in rows:
        tokens = "" if row.tokens is None else row.tokens
        writer.writerow([row.name, row.scheme, row.method, tokens, f"{row.relative_error:.{DIGITS}f}", row.note])
    return text.getvalue()


def summarise(rows: Sequence[TensorRow], family: Family, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Plain data: methods used, mean error by kind, the worst tensors, fallbacks by reason, experts with few tokens."""
    kinds: dict[str, list[float]] = {}
    for row in rows:
        kinds.setdefault(family.kind(row.name), []).append(row.relative_error)
    worst = sorted(rows, key=lambda row: (-row.relative_error, row.name))[:WORST]
    found: dict[str, Any] = {
        "methods": dict(sorted(Counter(row.method for row in rows).items())),
        "kinds": {
            kind: {"tensors": len(errors), "mean_relative_error": round(sum(errors) / len(errors), DIGITS)}
            for kind, errors in sorted(kinds.items())
        },
        "worst": [{"name": row.name, "relative_error": round(row.relative_error, DIGITS)} for row in worst],
    }
    if "calibration" in recipe:
        fallen = (row.note for row in rows if row.method != recipe["method"])
        found["fallbacks"] = dict(sorted(Counter(fallen).items()))
        found["few_tokens"] = _few_tokens(rows, family, recipe["min_tokens"])
    return found


def _few_tokens(rows: Sequence[TensorRow], family: Family, threshold: int) -> dict[str, Any]:
    """Modules (an expert's projections count as one) with fewer tokens than the threshold, by layer."""
    modules: dict[str, int] = {}
    for row in rows:
        if row.tokens is not None:
            modules[_module(row.name)] = row.tokens
    few = sorted(
        (name for name, tokens in modules.items() if tokens < threshold), key=lambda n: (family.place(n)[0], n)
    )
    return {
        "threshold": threshold,
        "modules": len(few),
        "of": len(modules),
        "fewest": min(modules.values(), default=0),
        "unseen": sum(tokens == 0 for tokens in modules.values()),
        "layers": dict(Counter(family.place(name)[1] for name in few)),
    }


def _module(weight: str) -> str:
    """ "a.experts.7.up_proj.weight" -> "a.experts.7"."""
    return weight.rsplit(".", 2)[0]

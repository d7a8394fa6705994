"""Whether two records speak about the same thing, so that a difference between them is one of the conversion.

    base       the BF16 files (sha256), so another model, fine-tune or revision
    tokens     which tokens were measured: their hash, number, documents, sequences, domains, length of a sequence
    settings   what else changes numbers: draft steps, the live loop, how a server samples, how each lane computes
               (activations, order of accumulation, dtype), and where both ran benchmarks, how (few-shot examples,
               template, limit, seed)

Left out: library versions, kernels and machines. They move numbers by the noise floor, which the record holds, and a
history that broke at every upgrade of torch would be no history; the versions stand in the report.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qconvert.errors import UserError
from qconvert_evals.results import LaneIdentity, Results

BASE, TOKENS, SETTINGS = "base", "tokens", "settings"
KINDS = (BASE, TOKENS, SETTINGS)
TOKEN_KEYS = ("tokens_sha256", "tokens", "documents", "sequences", "domains", "seq_len")
SETTING_KEYS = ("draft_tokens", "live", "sampling", "yarn")
NUMERICS = ("compute_dtype", "activations", "activations_of", "accumulation")
WORDS = {
    BASE: "the baseline speaks of another base model",
    TOKENS: "the baseline was measured on other tokens",
    SETTINGS: "the baseline was measured with other settings",
}


@dataclass(frozen=True)
class Unlike:
    """One thing in which two records differ."""

    kind: str  # one of KINDS
    what: str
    now: str
    before: str

    def __str__(self) -> str:
        return f"{self.what}: {self.before} before, {self.now} now"


def unlike(now: Results, before: Results) -> list[Unlike]:
    """Everything that makes two records incomparable, in the order of KINDS."""
    return [*_bases(now, before), *_tool(now, before, TOKENS, TOKEN_KEYS), *_settings(now, before)]


def refuse_unlike(now: Results, before: Results, where: str, allowed: tuple[str, ...] = ()) -> list[Unlike]:
    """UserError at the first difference of a kind that is not allowed; the allowed ones are returned, to be said."""
    found = unlike(now, before)
    for one in found:
        if one.kind not in allowed:
            raise UserError(
                WORDS[one.kind],
                where=f"{where}, {one.what}",
                expected=one.now,
                found=one.before,
                fix=f"make the baseline again like this run, or give --allow-other {one.kind}; the report will say so",
            )
    return found


def key(results: Results) -> str:
    """Equal for records that may be joined by a line."""
    base = base_lane(results)
    files = sorted(base.files.items()) if base is not None else []
    said = [results.tool.get(name) for name in (*TOKEN_KEYS, *SETTING_KEYS)]
    return repr((files, said, sorted(_numerics(results)), sorted(_tasks(results).items())))


def base_lane(results: Results) -> LaneIdentity | None:
    """The BF16 lane."""
    return next((one for one in results.lanes if one.role == "base"), None)


def _bases(now: Results, before: Results) -> Iterator[Unlike]:
    ours, theirs = base_lane(now), base_lane(before)
    if ours is None or theirs is None:
        raise UserError("the results hold no base lane", fix="write them with `qconvert compare`")
    for name in sorted(ours.files.keys() | theirs.files.keys()):
        new, old = (f"sha256 {one.files.get(name, 'none')}" for one in (ours, theirs))
        if new != old:
            yield Unlike(BASE, name, new, old)


def _tool(now: Results, before: Results, kind: str, names: tuple[str, ...]) -> Iterator[Unlike]:
    for name in names:
        new, old = now.tool.get(name), before.tool.get(name)
        if new != old:
            yield Unlike(kind, f"tool.{name}", repr(new), repr(old))


def _settings(now: Results, before: Results) -> Iterator[Unlike]:
    yield from _tool(now, before, SETTINGS, SETTING_KEYS)
    ours, theirs = dict(_numerics(now)), dict(_numerics(before))
    for name in [one for one in ours if one in theirs and ours[one] != theirs[one]]:
        yield Unlike(SETTINGS, f"numerics of lane {name}", ours[name], theirs[name])
    new, old = _tasks(now), _tasks(before)
    for name in [one for one in new if one in old and new[one] != old[one]]:
        yield Unlike(SETTINGS, f"benchmarks, {name}", new[name], old[name])


def _tasks(results: Results) -> dict[str, str]:
    """How benchmarks were run; which ones is seen by their names."""
    record = results.figures.get("tasks") or {}
    settings = {**(record.get("settings") or {}), "lm_eval": record.get("lm_eval")}
    return {name: repr(value) for name, value in settings.items() if name not in ("names", "include_path") and record}


def _numerics(results: Results) -> list[tuple[str, str]]:
    def said(numerics: dict[str, Any]) -> str:
        return ", ".join(f"{name} {numerics[name]}" for name in NUMERICS if name in numerics)

    return [(one.name, said(one.numerics)) for one in results.lanes if one.role != "noise"]  # these follow the others

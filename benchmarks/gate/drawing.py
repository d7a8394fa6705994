"""One lane of a real comparison with its documents drawn anew: what the metrics would have found in them.

A comparison keeps the states of its metrics (`compare(keep=...)`): numbers by token for logits and drafts, sums by
document for routes and hidden states, counts by prompt for decoding. A draw takes as many documents as there were, with
replacement and domain by domain, as the corpus was made; a document drawn twice is two documents. Each state is rebuilt
from the drawn rows, and the metric's own statistics compute the measurements from it. For routes, hidden states and
decoding that is the metric's `result`; for logits and drafts, whose tables have a row a token, only what the budget
speaks about is computed, by the same calls. `Lane.check` holds the draw of every document once against the record: each
covered measurement must come out as it was recorded.

What was counted in full (weights) stays as it is. The base's and the noise lane's numbers stay, too: rows only ask
whether they are there, and take noise floors from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from qconvert_evals import statistics
from qconvert_evals.metrics import acceptance, hidden, logits, router
from qconvert_evals.metrics.acceptance import AcceptanceState
from qconvert_evals.metrics.found import Found, by_domain, by_stretch, join
from qconvert_evals.metrics.hidden import HiddenState
from qconvert_evals.metrics.logits import LogitsState
from qconvert_evals.metrics.router import LayerSums, RouterState
from qconvert_evals.metrics.table import TokenTable
from qconvert_evals.results import Measurement, Results

Index = npt.NDArray[np.int64]
Wanted = Callable[[str, str], bool]  # (measurement, slice)
UNITS = {"logits.kl_mean": "nats", "logits.ppl_ratio": "ratio", "logits.top1_agreement": "fraction"}
SAME = 1e-9  # relative; sums over documents in another order


class Lane:
    """The states of one candidate."""

    def __init__(self, results: Results, states: Sequence[object], name: str, wanted: Wanted) -> None:
        self.name, self.wanted = name, wanted
        self.recorded = {(m.name, m.slice): m for m in results.measurements if m.lane == name}
        self.fixed = [m for m in self.recorded.values() if m.exact and wanted(m.name, m.slice)]
        mine = [one for one in states if getattr(one, "lane", "") == name]
        base = next(one.name for one in results.lanes if one.role == "base")
        self.seq_len = int(results.tool["seq_len"])
        self.logits = _only(mine, LogitsState)
        self.router, self.hidden = _only(mine, RouterState), _only(mine, HiddenState)
        self.counted = [one for one in mine if isinstance(getattr(one, "documents", None), list)]  # of decoding
        drafts = [one for one in mine if isinstance(one, AcceptanceState)]
        self.drafts = [one for one in drafts if not one.context]
        self.forced = [one for one in drafts if one.context]
        self.base_drafts = [
            one for one in states if isinstance(one, AcceptanceState) and one.lane == base and not one.context
        ]
        self.domains: list[str] = list(self.logits.domains)
        self.documents = np.unique(self.logits.table.indices("document"))
        self.prompts = np.unique([one for state in self.counted for one in state.documents]).astype(np.int64)

    def draw(self, source: np.random.Generator) -> tuple[Index, Index]:
        """Documents, and numbers of prompts: as many as there are, with replacement, documents domain by domain."""
        by_name: dict[str, list[int]] = {}
        for document in self.documents.tolist():
            by_name.setdefault(self.domains[document], []).append(document)
        drawn = [source.choice(numbers, len(numbers)) for numbers in by_name.values()]
        prompts = source.integers(0, len(self.prompts), len(self.prompts)) if len(self.prompts) else self.prompts
        return np.concatenate(drawn), np.asarray(prompts, dtype=np.int64)

    def all(self) -> tuple[Index, Index]:
        """Every document and every prompt once."""
        return self.documents, np.arange(len(self.prompts))

    def measure(self, documents: Index, prompts: Index) -> list[Measurement]:
        """What is judged of this lane, found in these documents."""
        domains = [self.domains[number] for number in documents.tolist()]
        found = [
            _logits(_taken_tokens(self.logits, documents, domains), self.seq_len, self.wanted),
            router.result(_taken_routes(self.router, documents, domains)),
            hidden.result(_taken_sums(self.hidden, documents, domains)),
            *self._drafting(documents, domains),
            *self._decoding(prompts),
        ]
        rows = [row for one in found for row in one.measurements if self.wanted(row.name, row.slice)]
        return [*self.fixed, *(self._with_floor(row) for row in rows)]

    def _with_floor(self, row: Measurement) -> Measurement:
        recorded = self.recorded.get((row.name, row.slice))
        return row if recorded is None else replace(row, noise_floor=recorded.noise_floor)

    def _drafting(self, documents: Index, domains: list[str]) -> Iterator[Found]:
        for own in self.drafts:
            taken = _taken_tokens(own, documents, domains)
            base = _taken_tokens(self.base_drafts[0], documents, domains)
            yield _drafts(taken, base, self.wanted)

    def _decoding(self, prompts: Index) -> Iterator[Found]:
        """Prompts come from documents of their own, so that a prompt's number in the draw names it."""
        if not len(prompts):
            return
        texts = self.prompts[prompts]
        domains = [self.domains[number] for number in texts.tolist()]
        for counted in self.counted:
            metric = import_module(type(counted).__module__)
            yield metric.result(_taken_rows(counted, texts, domains))
        for forced in self.forced:
            yield acceptance.result(_taken_tokens(forced, texts, domains))

    def check(self) -> None:
        """Every document once gives the record's own numbers; AssertionError with the first that it does not."""
        found = {(row.name, row.slice): row for row in self.measure(*self.all())}
        for key, recorded in self.recorded.items():
            if not self.wanted(*key) or recorded.value is None:
                continue
            own = found.get(key)
            assert own is not None, f"{key} of {self.name} is covered by the budget and not drawn anew"
            for field in ("value", "ci_low", "ci_high"):
                ours, theirs = getattr(own, field), getattr(recorded, field)
                same = ours == theirs or math.isclose(ours, theirs, rel_tol=SAME, abs_tol=SAME)
                assert same, f"{key} of {self.name}: {field} {ours} where the record has {theirs}"
            assert own.n == recorded.n, f"{key} of {self.name}: n {own.n} where the record has {recorded.n}"


def _only(states: Sequence[object], kind: type) -> object:
    (one,) = [state for state in states if type(state) is kind]
    return one


def _taken_tokens(state, documents: Index, domains: list[str]):  # type: ignore[no-untyped-def]
    """A state with a table by token, its rows those of the drawn documents, numbered by the draw."""
    owners = state.table.indices("document")
    order = np.argsort(owners, kind="stable")
    first = np.searchsorted(owners[order], documents)
    counts = np.searchsorted(owners[order], documents, side="right") - first
    places = np.concatenate([order[a : a + n] for a, n in zip(first, counts, strict=True)])
    table = TokenTable()
    table._pieces = {name: [np.concatenate(pieces)[places]] for name, pieces in state.table._pieces.items()}
    table._pieces["document"] = [np.repeat(np.arange(len(documents)), counts)]
    return replace(state, domains=domains, table=table)


def _taken_routes(state: RouterState, documents: Index, domains: list[str]) -> RouterState:
    layers = {
        key: LayerSums(one.sums[documents], one.base_load[documents], one.load[documents])
        for key, one in state.layers.items()
    }
    stretches = {key: table[documents] for key, table in state.stretches.items()}
    return replace(state, domains=domains, layers=layers, stretches=stretches)


def _taken_sums(state: HiddenState, documents: Index, domains: list[str]) -> HiddenState:
    return replace(state, domains=domains, layers={key: sums[documents] for key, sums in state.layers.items()})


def _taken_rows(state: Any, texts: Index, domains: list[str]) -> Any:
    """A state of lists by prompt or by anchor, of which `documents` names the text: those of the drawn texts."""
    places, owners = [], []
    for number, text in enumerate(texts.tolist()):
        mine = [place for place, document in enumerate(state.documents) if document == text]
        places += mine
        owners += [number] * len(mine)
    held = {one.name: getattr(state, one.name) for one in fields(state)}
    changed: dict[str, Any] = {
        name: [rows[place] for place in places]
        for name, rows in held.items()
        if isinstance(rows, list) and name not in ("domains", "documents")
    }
    return replace(state, **changed, documents=owners, **({"domains": domains} if "domains" in held else {}))


def _logits(state: LogitsState, seq_len: int, wanted: Wanted) -> Found:
    """As `logits.result`, no more than what is wanted."""
    found = Found(state.lane)
    documents = state.table.indices("document")
    finite = np.isfinite(state.table.numbers("kl")) & np.isfinite(state.table.numbers("nll"))
    positions = np.mod(state.table.indices("place"), seq_len)
    for slice_name, mask in (*by_domain(documents, state.domains), *by_stretch(positions)):
        columns, why = logits._finite(state, mask, finite)
        for name, unit in UNITS.items():
            if wanted(name, slice_name):
                found.add(name, slice_name, unit, _token_mean(name, columns), why)
        levels = {name: level for name, level in logits.KL_LEVELS.items() if wanted(f"logits.{name}", slice_name)}
        points = statistics.quantiles(columns["kl"], list(levels.values()), columns.documents) if levels else []
        for name, estimate in zip(levels, points, strict=True):
            found.add(f"logits.{name}", slice_name, "nats", estimate, why)
    return found


def _token_mean(name: str, columns: logits._Columns) -> statistics.Estimate:
    if name == "logits.kl_mean":
        return statistics.mean(columns["kl"], columns.documents)
    if name == "logits.ppl_ratio":
        return statistics.mean(columns["nll"] - columns["nll_base"], columns.documents).mapped(logits._exp)
    return logits._share(columns, "same_top")


def _drafts(state: AcceptanceState, base: AcceptanceState, wanted: Wanted) -> Found:
    """As `acceptance.result`, no more than what is wanted."""
    found = Found(state.lane)
    documents = state.table.indices("document")
    kinds = dict.fromkeys(name.rstrip("0123456789") for name in state.table._pieces if name[-1].isdigit())
    for slice_name, mask in (*by_domain(documents, state.domains), *by_stretch(state.table.indices("position"))):
        rows = documents[mask]
        for kind in kinds:
            own, other = (acceptance._accepted(one, kind)[mask] for one in (state, base))
            name, ones = f"mtp.acceptance_{kind}", np.ones(len(own))
            for step in range(state.steps):
                at = join(f"position={step + 1}", slice_name)
                if wanted(name, at):
                    found.add(name, at, "fraction", statistics.proportion(own[:, step], ones, rows))
                    change = statistics.mean(own[:, step] - other[:, step], rows)
                    found.add(f"{name}_difference", at, "fraction", change)
            length = acceptance.accept_length_name(kind)
            if wanted(length, slice_name):
                found.add(length, slice_name, "tokens", statistics.mean(1 + own.sum(1), rows))
                change = statistics.mean(own.sum(1) - other.sum(1), rows)
                found.add(f"{length}_difference", slice_name, "tokens", change)
    return found

"""All lanes walk through the trunk side by side: layer i of every lane is built, fed every batch, and dropped.

Memory is one layer of one lane, plus the hidden states of every lane. While the base lane's layer runs, its inputs
and routes are held; then each other lane's layer runs twice per batch, on its own hidden states (feed "free") and on
the base's (feed "local"). Where both inputs are equal in every bit, as in front of layer 0, one run serves for both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qconvert_evals.corpus import Batch
from qconvert_evals.metrics import hidden as hidden_metric
from qconvert_evals.metrics import router as router_metric
from qconvert_evals.metrics.hidden import HiddenState
from qconvert_evals.metrics.router import RouterState, Routes
from qconvert_reference.lane import Lane
from qconvert_reference.layer import LayerOutput
from qconvert_reference.moe import RouterTrace

Tick = Callable[[], None]


@dataclass
class Track:
    """One lane on its way: its hidden states per batch, and what has been measured of its layers."""

    lane: Lane
    hidden: list[Tensor]  # [B, T, H] per batch; behind the final norm once `run_trunk` is done
    router: RouterState
    errors: HiddenState
    normed: list[Tensor] = field(default_factory=list)

    @classmethod
    def start(cls, lane: Lane, batches: Sequence[Batch], domains: Sequence[str]) -> Track:
        """Embedded tokens."""
        embedded = [lane.embed(batch.tokens) for batch in batches]
        return cls(lane, embedded, RouterState(lane.name, domains), HiddenState(lane.name, domains))


def run_trunk(base: Track, others: Sequence[Track], batches: Sequence[Batch], tick: Tick) -> None:
    """Take all lanes from the embedding to behind the final norm; `tick` is called after each layer of each lane."""
    for index in range(base.lane.num_layers):
        inputs = base.hidden
        layer = base.lane.layer(index)
        outputs = [layer(entering) for entering in inputs]
        del layer
        tick()
        for track in others:
            _follow(track, index, inputs, outputs, batches)
            tick()
        base.hidden = [output.hidden for output in outputs]
    for track in (base, *others):
        track.normed = [track.lane.finish(state) for state in track.hidden]
        track.hidden = []


def _follow(
    track: Track, index: int, inputs: Sequence[Tensor], outputs: Sequence[LayerOutput], batches: Sequence[Batch]
) -> None:
    """One layer of a lane that is compared with the base."""
    layer = track.lane.layer(index)
    for number, batch in enumerate(batches):
        own = layer(track.hidden[number])
        same = torch.equal(track.hidden[number], inputs[number])
        local = own if same else layer(inputs[number])
        for feed, output in (("local", local), ("free", own)):
            observe(track, str(index), feed, outputs[number], output, batch)
        track.hidden[number] = own.hidden


def observe(track: Track, layer: str, feed: str, base: LayerOutput, own: LayerOutput, batch: Batch) -> None:
    """Routes and hidden states of one batch behind one layer."""
    mask = batch.mask()
    documents = batch.spread(batch.documents)[mask]
    hidden_metric.update(track.errors, layer, feed, base.hidden[mask], own.hidden[mask], documents)
    observe_routes(track.router, layer, feed, base.router, own.router, mask, documents)


def observe_routes(
    state: RouterState,
    layer: str,
    feed: str,
    base: RouterTrace | None,
    own: RouterTrace | None,
    mask: Tensor,
    documents: Tensor,
) -> None:
    """Routes under a mask [B, T]; layers without a router have nothing to show."""
    if base is None or own is None:
        return
    before, after = (Routes(trace.logits[mask], trace.experts[mask], trace.weights[mask]) for trace in (base, own))
    positions = mask.nonzero(as_tuple=True)[1]
    router_metric.update(state, layer, feed, before, after, documents, positions)

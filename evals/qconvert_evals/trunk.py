"""All lanes walk through the trunk side by side: layer i of every lane is built, fed every batch, and dropped.

Memory is one layer of one lane, plus the hidden states of every lane. A lane's layer runs twice per batch, on its own
hidden states (feed "free") and on those of the lane it is measured against (feed "local"), whose inputs and routes are
held meanwhile. Where both inputs are equal in every bit, as in front of layer 0, one run serves for both.

Lanes are measured against the base, and a noise lane of a candidate against that candidate.
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
from qconvert_evals.results import reference_of
from qconvert_reference.lane import Lane
from qconvert_reference.layer import LayerOutput
from qconvert_reference.moe import RouterTrace

Tick = Callable[[], None]


@dataclass
class Track:
    """One lane on its way: its hidden states per batch, and what has been measured of its layers against another
    (None: of the base, which is measured against nothing)."""

    lane: Lane
    hidden: list[Tensor]  # [B, T, H] per batch; behind the final norm once `run_trunk` is done
    router: RouterState
    errors: HiddenState
    against: Track | None = None
    normed: list[Tensor] = field(default_factory=list)

    @classmethod
    def start(cls, lane: Lane, batches: Sequence[Batch], domains: Sequence[str], against: Track | None = None) -> Track:
        """Embedded tokens."""
        embedded = [lane.embed(batch.tokens) for batch in batches]
        return cls(lane, embedded, RouterState(lane.name, domains), HiddenState(lane.name, domains), against)


def start_all(base: Lane, others: Sequence[Lane], batches: Sequence[Batch], domains: Sequence[str]) -> list[Track]:
    """Tracks of the base and the others, in their order; a lane comes behind the one that it is measured against."""
    tracks = {base.name: Track.start(base, batches, domains)}
    for lane in others:
        tracks[lane.name] = Track.start(lane, batches, domains, tracks[reference_of(lane.name)])
    return list(tracks.values())


@dataclass(frozen=True)
class _Step:
    """What a lane's layer read and wrote, batch by batch."""

    inputs: list[Tensor]
    outputs: list[LayerOutput]


def run_trunk(tracks: Sequence[Track], batches: Sequence[Batch], tick: Tick) -> None:
    """Take all lanes, base first, from the embedding to behind the final norm; `tick` after each layer of each lane."""
    for index in range(tracks[0].lane.num_layers):
        _advance(tracks[0], None, index, tracks, batches, tick)
    for track in tracks:
        track.normed = [track.lane.finish(state) for state in track.hidden]
        track.hidden = []


def _advance(
    track: Track, leader: _Step | None, index: int, tracks: Sequence[Track], batches: Sequence[Batch], tick: Tick
) -> None:
    """One layer of a lane, compared with that of its leader; then of the lanes that are measured against it."""
    followers = [one for one in tracks if one.against is track]
    layer, step = track.lane.layer(index), _Step(track.hidden, [])
    for number, batch in enumerate(batches):
        own = layer(step.inputs[number])
        if leader is not None:
            theirs = leader.inputs[number]
            local = own if torch.equal(step.inputs[number], theirs) else layer(theirs)
            for feed, output in (("local", local), ("free", own)):
                observe(track, str(index), feed, leader.outputs[number], output, batch)
        step.outputs.append(own if followers else own._replace(router=None))
    del layer
    tick()
    for follower in followers:
        _advance(follower, step, index, tracks, batches, tick)
    track.hidden = [output.hidden for output in step.outputs]


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

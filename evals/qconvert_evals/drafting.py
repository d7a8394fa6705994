"""Teacher-forced drafts of the MTP head over a text, judged by the same lane's trunk (definitions in
`metrics.acceptance`).

Anchors are the positions t of a sequence with at least k further ones, so that each of the k steps has a target: the
same anchors for all steps, and rates that fall with the step as an engine's do. The head's own routes are measured
too, as layer "mtp": in feed "local" a lane's head reads the trunk of the lane that it is measured against, in feed
"free" its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from qconvert_evals.corpus import Batch
from qconvert_evals.metrics import acceptance
from qconvert_evals.metrics.acceptance import AcceptanceState
from qconvert_evals.predictions import row_logits, row_slices
from qconvert_evals.sampling import Sampling
from qconvert_evals.trunk import Track, observe_routes
from qconvert_reference.lane import Lane
from qconvert_reference.moe import RouterTrace
from qconvert_reference.mtp import MtpHead


def measure(
    base: Track,
    others: Sequence[Track],
    batches: Sequence[Batch],
    steps: int,
    sampling: Sampling,
    tick: Callable[[], None],
) -> dict[str, AcceptanceState]:
    """Acceptance of every lane that has a head, by lane name; routes go into the tracks' router states."""
    states: dict[str, AcceptanceState] = {}
    routes: dict[str, list[RouterTrace | None]] = {}  # of lanes that others are measured against, by batch
    leaders = {base.lane.name, *(track.against.lane.name for track in others if track.against is not None)}
    for track in (base, *others):
        head = track.lane.mtp()
        if head is None:
            continue
        state = AcceptanceState(track.lane.name, track.router.domains, steps, sampling=sampling)
        states[track.lane.name] = state
        for number, batch in enumerate(batches):
            own = _force(state, track.lane, head, batch, track.normed[number])
            if track.lane.name in leaders:
                routes.setdefault(track.lane.name, []).append(own)
            leader = track.against or base
            if leader is not track and leader.lane.name in routes:
                theirs = routes[leader.lane.name][number]
                _compare_routes(track, head, batch, leader.normed[number], theirs, own)
        tick()
    return states


def _force(
    state: AcceptanceState, lane: Lane, head: MtpHead, batch: Batch, normed: Tensor, first: int = 0
) -> RouterTrace | None:
    """All anchors of a batch from position `first` on; returns the routes of step 1 [B, T-1]."""
    if batch.tokens.shape[1] <= state.steps + 1:
        return None
    outputs = head.teacher_forced(batch.tokens, normed, state.steps)
    anchors = batch.mask(drop=state.steps).clone()  # step j's target is the trunk at t + j
    anchors[:, :first] = False
    rows, columns = anchors.nonzero(as_tuple=True)
    for part in row_slices(len(rows), lane.config.vocab_size):
        row, column = rows[part], columns[part]
        drafts = [row_logits(lane, output.normed[row, column]) for output in outputs]
        targets = [row_logits(lane, normed[row, column + step]) for step in range(1, state.steps + 1)]
        acceptance.update(state, drafts, targets, batch.documents[row], column)
    return outputs[0].router


def force_generated(
    lane: Lane, head: MtpHead, batch: Batch, normed: Tensor, state: AcceptanceState, prompt_length: int
) -> None:
    """Acceptance on a lane's own output behind prompts of equal length: anchors start where a live loop starts."""
    _force(state, lane, head, batch, normed, first=prompt_length - 1)


def _compare_routes(
    track: Track, head: MtpHead, batch: Batch, base_normed: Tensor, base: RouterTrace | None, own: RouterTrace | None
) -> None:
    mask = batch.mask(drop=1)[:, :-1]
    documents = batch.spread(batch.documents)[:, :-1][mask]
    local = head(batch.tokens[:, 1:], base_normed[:, :-1]).router
    observe_routes(track.router, "mtp", "local", base, local, mask, documents)
    observe_routes(track.router, "mtp", "free", base, own, mask, documents)

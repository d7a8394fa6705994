"""Beginnings that are run once: the plan for any rows, and the scores beside those without it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qconvert_evals.tasks import scoring, sharing
from qconvert_evals.tasks.scoring import Span, merge, score
from qconvert_evals.tasks.sharing import CHUNK, SHORTEST, batches, cost, families
from qconvert_reference.cache import AttentionState, DeltaState
from qconvert_reference.lane import Lane
from tests.tasks.conftest import quiet
from tests.tasks.test_language_model import EXACT, alone

STEM = tuple(range(100, 500))
# A stem cut anywhere, then a branch of its own.
ROWS = st.lists(
    st.tuples(st.integers(0, 400), st.lists(st.integers(0, 2), min_size=1, max_size=40)).map(
        lambda pair: (*STEM[: pair[0]], *pair[1])
    ),
    min_size=1,
    max_size=24,
)


@given(ROWS, st.integers(1, 30), st.sampled_from([64, 600, 4096]))
def test_every_row_stands_behind_its_own_beginning(fed: list[tuple[int, ...]], scored: int, tokens: int) -> None:
    rows, _ = merge(fed)
    wanted = [max(0, len(row) - scored) for row in rows]
    found = families(rows, wanted)
    assert sorted(number for one in found for number in one.rows) == list(range(len(rows)))
    for one in found:
        assert one.shared % CHUNK == 0 and (one.shared >= SHORTEST or (not one.shared and len(one.rows) == 1))
        assert len({rows[number][: one.shared] for number in one.rows}) == 1
        assert all(one.shared <= wanted[number] for number in one.rows)
    made = batches(rows, found, tokens)
    assert sorted(number for one in made for number in one.rows) == list(range(len(rows)))
    for one in made:
        assert len(one.owners) == (len(one.rows) if one.shared else 0)
        for owner, number in zip(one.owners, one.rows, strict=bool(one.shared)):
            assert rows[number][: one.shared] == one.prefixes[owner] and len(rows[number]) > one.shared
    assert sum(cost(rows, one) for one in batches(rows, found, 1)) <= sum(map(len, rows))


def test_few_shot_examples_and_passages_are_found() -> None:
    shots = [(*STEM[:300], document, *range(20), choice) for document in range(5) for choice in range(4)]
    (family,) = families(shots, [len(row) - 1 for row in shots])
    assert family.shared == 300 // CHUNK * CHUNK and len(family.rows) == 20
    passages = [(document, *STEM[:200], choice, 7) for document in range(3) for choice in range(4)]
    assert [one.shared for one in families(passages, [201] * 12)] == [192] * 3
    assert len(batches(passages, families(passages, [201] * 12), 4096)) == 1
    assert all(not one.shared for one in families(passages, [100] * 12))  # what is wanted begins in the passage
    long = [(*STEM[:150], *[document] * 200) for document in range(2)]
    assert all(not one.shared for one in families(long, [150] * 2))  # saves a fifth only


def test_copies_of_the_state_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(*STEM, number, 1) for number in range(100)]
    monkeypatch.setattr(sharing, "REMEMBERED", 10 * 402)
    assert {len(one.rows) for one in batches(rows, families(rows, [400] * 100), 4096)} == {10}


def some_spans() -> list[Span]:
    """Three questions behind the same examples, one with a passage of its own, and some that share nothing."""
    generator = torch.Generator().manual_seed(8)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, 256, (count,), generator=generator).tolist())

    examples, found = draw(140), []
    for question in (draw(9), draw(14), draw(160)):
        found += [Span((*examples, *question, *answer), len(answer)) for answer in (draw(3), draw(8), draw(1), draw(1))]
    passage = draw(135)
    found += [Span((*passage, *answer), len(answer)) for answer in (draw(4), draw(6), draw(20))]
    return [*found, *(Span(draw(length), 2) for length in (4, 150))]


@pytest.mark.parametrize("tokens", [4096, 200])
def test_scores_are_those_of_each_request_alone(tokens: int, lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "BATCH_TOKENS", tokens)
    monkeypatch.setattr(scoring, "HELD_TOKENS", 2 * tokens)
    spans = some_spans()
    assert any(one.shared for one in families([span.fed for span in spans], [len(s.fed) - s.scored for s in spans]))
    for one, span in zip(score(lane, spans, quiet), spans, strict=True):
        value, greedy = alone(lane, list(span.tokens), span.scored)
        assert abs(one.log_likelihood - value) < EXACT and one.greedy == greedy


@pytest.mark.parametrize("kind", [AttentionState, DeltaState])
def test_the_state_of_another_row_shows(
    kind: type[AttentionState] | type[DeltaState], lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind of layer, given the state behind another family's beginning."""
    spans = [Span((token, *[token] * 140, choice, 9, 8), 2) for token in (3, 4) for choice in (1, 2, 5)]
    right = score(lane, spans, quiet)
    take = kind.take

    def wrong(state: AttentionState | DeltaState, rows: Tensor) -> None:
        take(state, rows.flip(0))

    monkeypatch.setattr(kind, "take", wrong)
    moved = [abs(a.log_likelihood - b.log_likelihood) for a, b in zip(score(lane, spans, quiet), right, strict=True)]
    assert min(moved) > 10 * EXACT


def test_nothing_shared_is_scored_as_before(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    spans = some_spans()
    shared = score(lane, spans, quiet)
    monkeypatch.setattr(sharing, "SHORTEST", 1000)
    plain = score(lane, spans, quiet)
    assert shared != plain and all(
        abs(a.log_likelihood - b.log_likelihood) < EXACT for a, b in zip(shared, plain, strict=True)
    )

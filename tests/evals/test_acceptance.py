"""Acceptance of drafts on hand-made distributions, with the negative control that a shifted target must fail."""

import numpy as np
import pytest
import torch

from qconvert_evals.metrics import acceptance, live

DOMAINS = ["code", "prose"]


def peaked(tokens: torch.Tensor, vocabulary: int = 11) -> torch.Tensor:
    """Logits [n, V] whose softmax puts practically everything on the given tokens."""
    return 200.0 * torch.nn.functional.one_hot(tokens, vocabulary).double()


def rows(found) -> dict[tuple[str, str], float | None]:
    return {(row.name, row.slice): row.value for row in found.measurements}


TARGETS = [torch.tensor([1, 2, 3, 4]), torch.tensor([5, 6, 7, 8])]
DRAFTS = [torch.tensor([1, 2, 3, 9]), torch.tensor([5, 0, 7, 8])]  # step 1 fails at anchor 3; step 2 at anchor 1
DOCUMENTS = torch.tensor([0, 0, 1, 1])


def state_of(lane: str, drafts, targets, context: str = "") -> acceptance.AcceptanceState:
    state = acceptance.AcceptanceState(lane, DOMAINS, len(drafts), context)
    acceptance.update(
        state, [peaked(one) for one in drafts], [peaked(one) for one in targets], DOCUMENTS, torch.zeros_like(DOCUMENTS)
    )
    return state


def test_by_hand() -> None:
    found = rows(acceptance.result(state_of("fp8", DRAFTS, TARGETS)))
    assert found["mtp.acceptance_greedy", "position=1"] == 0.75
    # Anchor 3 drafts its second token right, but only behind a rejected one: it does not count.
    assert found["mtp.acceptance_greedy", "position=2"] == 0.5
    assert found["mtp.acceptance_conditional", "position=2"] == pytest.approx(2 / 3)
    assert found["mtp.accept_length", "all"] == 2.25
    assert found["mtp.acceptance_greedy", "position=1,domain=code"] == 1.0
    assert found["mtp.acceptance_greedy", "position=1,domain=prose"] == 0.5
    assert found["mtp.acceptance_sampled", "position=2"] == pytest.approx(0.5, abs=1e-12)
    assert found["mtp.accept_length_sampled", "all"] == pytest.approx(2.25, abs=1e-12)


def test_shifted_target_is_rejected() -> None:
    """The control that shows the metric can fail: right drafts held against the next position's targets."""
    right = rows(acceptance.result(state_of("fp8", TARGETS, TARGETS)))
    shifted = rows(acceptance.result(state_of("fp8", TARGETS, [one.roll(1) for one in TARGETS])))
    assert right["mtp.accept_length", "all"] == 3.0
    assert shifted["mtp.accept_length", "all"] == 1.0
    assert shifted["mtp.acceptance_sampled", "position=1"] == pytest.approx(0, abs=1e-12)


def test_sampled_is_the_overlap_of_the_distributions() -> None:
    p, q = torch.tensor([[0.5, 0.3, 0.2]]), torch.tensor([[0.2, 0.3, 0.5]])
    state = acceptance.AcceptanceState("fp8", ["code"], 2)
    acceptance.update(state, [q.log(), p.log()], [p.log(), q.log()], torch.tensor([0]), torch.tensor([0]))
    found = rows(acceptance.result(state))
    assert found["mtp.acceptance_sampled", "position=1"] == pytest.approx(0.7)
    assert found["mtp.acceptance_sampled", "position=2"] == pytest.approx(0.49)


def test_differences_are_paired() -> None:
    base, own = state_of("bf16", TARGETS, TARGETS), state_of("fp8", DRAFTS, TARGETS)
    found = acceptance.result(own, base)
    values = rows(found)
    assert values["mtp.acceptance_greedy_difference", "position=1"] == -0.25
    assert values["mtp.accept_length_difference", "all"] == -0.75
    same = acceptance.result(base, base)
    (row,) = [one for one in same.measurements if (one.name, one.slice) == ("mtp.accept_length_difference", "all")]
    assert row.value == 0 and row.ci_low == -row.ci_high  # a few anchors that agree prove little
    assert row.ci_high == pytest.approx(2 * (1 - 0.05 ** (1.05 / 4)))  # two drafts; 4 anchors, two a document


def test_context_is_part_of_the_slice() -> None:
    found = rows(acceptance.result(state_of("fp8", DRAFTS, TARGETS, "context=generated")))
    assert found["mtp.accept_length", "context=generated"] == 2.25
    assert found["mtp.acceptance_greedy", "position=1,domain=code,context=generated"] == 1.0


def test_lost_head_is_missing_not_zero() -> None:
    found = acceptance.absent("fp8", 2, "the checkpoint has no mtp tensors")
    assert found.measurements and all(row.value is None for row in found.measurements)
    assert {one.why for one in found.missing} == {"the checkpoint has no mtp tensors"}


def test_live_counts() -> None:
    state = live.LiveState("fp8", DOMAINS, 2)
    live.update(state, 0, [10, 8], [8, 5])
    live.update(state, 1, [10, 5], [5, 0])
    found = rows(live.result(state))
    assert found["mtp.acceptance_live", "position=1"] == pytest.approx(13 / 20)
    assert found["mtp.acceptance_live", "position=2"] == pytest.approx(5 / 20)
    assert found["mtp.accept_length_live", "all"] == pytest.approx(1 + 18 / 20)
    assert found["mtp.accept_length_live", "domain=prose"] == pytest.approx(1.5)
    assert live.result(live.LiveState("fp8", DOMAINS, 2)).missing[0].why == "no document is long enough for a prompt"


def test_a_last_step_that_drafts_less_is_no_rejection() -> None:
    state = live.LiveState("fp8", ["code"], 2)
    live.update(state, 0, [10, 9], [10, 9])  # one step had room for a single draft
    found = live.result(state)
    assert rows(found)["mtp.acceptance_live", "position=2"] == 1.0


def test_live_interval_has_bounds_even_without_spread() -> None:
    state = live.LiveState("fp8", DOMAINS, 1)
    for document in range(2):
        live.update(state, document, [30], [0])
    (row,) = [
        one for one in live.result(state).measurements if (one.name, one.slice) == ("mtp.acceptance_live", "position=1")
    ]
    assert row.value == row.ci_low == 0 and row.ci_high == pytest.approx(0.658, abs=1e-3)  # Wilson, 0 of 2 prompts


def test_average_over_anchors_and_loop_agree_on_independent_outcomes() -> None:
    """Where outcomes do not depend on the anchor, a loop that skips anchors has the same rates, within intervals."""
    rng = np.random.default_rng(1)
    state = acceptance.AcceptanceState("fp8", ["code"] * 40, 2)
    loop = live.LiveState("fp8", ["code"] * 40, 2)
    for document in range(40):
        first, second = rng.random(200) < 0.7, rng.random(200) < 0.5
        drafts = [peaked(torch.from_numpy(one.astype(np.int64))) for one in (first, second)]
        ones = [peaked(torch.ones(200, dtype=torch.int64))] * 2
        acceptance.update(state, drafts, ones, torch.full((200,), document), torch.arange(200))
        outcomes, at = [], 0
        while at < 200:
            outcomes.append((int(first[at]), int(first[at] and second[at])))
            at += 1 + sum(outcomes[-1])
        accepted = np.sum(outcomes, 0).tolist()
        live.update(loop, document, [len(outcomes), accepted[0]], accepted)
    forced = {row.slice: row for row in acceptance.result(state).measurements if row.name == "mtp.acceptance_greedy"}
    lived = {row.slice: row for row in live.result(loop).measurements if row.name == "mtp.acceptance_live"}
    for position in ("position=1", "position=2"):
        assert forced[position].ci_low <= lived[position].ci_high and lived[position].ci_low <= forced[position].ci_high


def test_by_position_the_stretches_add_up_to_the_whole() -> None:
    state = acceptance.AcceptanceState("fp8", ["code", "prose"], 1)
    generator = torch.Generator().manual_seed(0)
    ones = peaked(torch.ones(300, dtype=torch.long))
    for document in (0, 1):
        drafts = [peaked(torch.randint(0, 2, (300,), generator=generator))]
        acceptance.update(state, drafts, [ones], torch.full((300,), document), torch.arange(300))
    found = {
        row.slice: row for row in acceptance.result(state).measurements if row.name == "mtp.acceptance_greedy"
    }  # fmt: skip
    stretches = [found[f"position=1,at={at}"] for at in ("0-127", "128-255", "256-511")]
    assert [row.n for row in stretches] == [256, 256, 88]
    whole = found["position=1"]
    assert whole.value == pytest.approx(sum(float(row.value or 0) * row.n for row in stretches) / whole.n)

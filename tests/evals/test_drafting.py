"""Teacher forcing against the live loop: on a lane's own output, walking the forced outcomes replays the loop."""

from pathlib import Path

import pytest
import torch

from qconvert_evals import drafting
from qconvert_evals.corpus import Batch
from qconvert_evals.metrics.acceptance import AcceptanceState
from qconvert_reference.generation import generate_speculative
from qconvert_reference.lane import Lane
from qconvert_reference.linear import Numerics
from tests.tiny import tiny_config, write_tiny_checkpoint


@pytest.fixture(scope="module")
def lane(tmp_path_factory: pytest.TempPathFactory) -> Lane:
    """Eight tokens only, so that even random drafts are often right; fp32, so that near-ties do not decide."""
    folder = tmp_path_factory.mktemp("tiny")
    base = write_tiny_checkpoint(Path(folder) / "bf16", tiny_config(vocab_size=8), seed=2)
    return Lane.open("bf16", base, Numerics(compute_dtype=torch.float32))


def walk(outcomes: list[int], new_tokens: int, steps: int) -> tuple[list[int], list[int]]:
    """Counts of a loop whose every step has the run of accepted drafts that teacher forcing found at its anchor."""
    checked, accepted, written = [0] * steps, [0] * steps, 1
    while written < new_tokens:
        drafts = min(steps, new_tokens - written - 1)
        run = min(outcomes[written - 1], drafts) if drafts else 0
        for position in range(drafts):
            if position <= run:
                checked[position] += 1
            if position < run:
                accepted[position] += 1
        written += run + 1
    return checked, accepted


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_forced_outcomes_replay_the_live_loop(lane: Lane, steps: int) -> None:
    model, prompt, new = lane.model(), [1, 5, 2, 7, 3, 3], 60
    with torch.inference_mode():
        output = generate_speculative(model, prompt, new, draft_tokens=steps)
        tokens = torch.tensor([[*prompt, *output.tokens]])
        batch = Batch(tokens, torch.tensor([tokens.shape[1]]), torch.tensor([0]), torch.tensor([0]))
        state = AcceptanceState("bf16", ["code"], steps, "context=generated")
        assert model.mtp is not None
        drafting.force_generated(lane, model.mtp, batch, model.forward(tokens).normed, state, len(prompt))
    outcomes = sum(state.table.numbers(f"greedy{step}") for step in range(1, steps + 1)).astype(int).tolist()
    assert walk(outcomes, new, steps) == (output.drafted, output.accepted)
    assert 0 < sum(output.accepted) < sum(output.drafted)


def test_targets_shifted_by_one_are_not_what_the_head_predicts(lane: Lane) -> None:
    """The control: with the trunk's rows moved by one position the replay must break."""
    model, prompt, new = lane.model(), [1, 5, 2, 7, 3, 3], 60
    with torch.inference_mode():
        output = generate_speculative(model, prompt, new, draft_tokens=1)
        tokens = torch.tensor([[*prompt, *output.tokens]])
        normed = model.forward(tokens).normed
        batch = Batch(tokens, torch.tensor([tokens.shape[1]]), torch.tensor([0]), torch.tensor([0]))
        state = AcceptanceState("bf16", ["code"], 1)
        assert model.mtp is not None
        drafting.force_generated(lane, model.mtp, batch, normed.roll(1, 1), state, len(prompt))
    outcomes = state.table.numbers("greedy1").astype(int).tolist()
    assert walk(outcomes, new, 1) != (output.drafted, output.accepted)

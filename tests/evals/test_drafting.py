"""Teacher forcing against the live loop: on a lane's own output, walking the forced outcomes replays the loop."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qconvert_evals import drafting, speculation
from qconvert_evals.corpus import Batch, Corpus, Stretch
from qconvert_evals.data import Document
from qconvert_evals.metrics import replay
from qconvert_evals.metrics.acceptance import AcceptanceState
from qconvert_evals.results import Measurement
from qconvert_evals.sampling import PLAIN
from qconvert_evals.speculation import LiveSettings
from qconvert_reference.generation import generate_speculative
from qconvert_reference.lane import Lane
from qconvert_reference.linear import Numerics
from tests.mutations.engine_faults import (
    keep_refused_drafts_in_the_delta_state,
    keep_refused_drafts_in_the_heads_cache,
)
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


def decoded(lane: Lane, steps: int = 2, prompts: int = 12) -> dict[tuple[str, str], Measurement]:
    """Real decoding of random prompts, one a document, and everything that it showed."""
    source = random.Random(0)
    documents = [Document(str(number), "code", "") for number in range(prompts)]
    sequences = [Stretch(number, 0, source.choices(range(8), k=6)) for number in range(prompts)]
    settings = LiveSettings(prompts, prompt_tokens=6, new_tokens=40)
    with torch.inference_mode():
        seen = speculation.measure(lane, Corpus(documents, sequences, []), steps, PLAIN, settings, lambda: None)
    return {(row.name, row.slice): row for found in seen.found() for row in found.measurements}


@pytest.mark.slow
def test_a_sound_loop_is_replayed_at_every_anchor(lane: Lane) -> None:
    found = decoded(lane)
    exact, gap, live = (
        found[name, at]
        for name, at in ((replay.EXACT, "all"), (replay.GAP, "position=1"), ("mtp.acceptance_live", "position=1"))
    )
    assert (exact.value, exact.n) == (1.0, 12)
    assert (gap.value, found[replay.GAP_LENGTH, "all"].value) == (0, 0)
    assert live.value is not None and 0.05 < live.value < 0.95  # both branches were taken, so the loop went back
    assert gap.n > 0.9 * live.n  # all but the last rounds are compared


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", [keep_refused_drafts_in_the_delta_state, keep_refused_drafts_in_the_heads_cache]
)  # fmt: skip
def test_a_loop_that_does_not_go_back_is_not_replayed(lane: Lane, fault: Callable[[Lane], None]) -> None:
    broken = Lane(lane.name, lane.weights, lane.numerics)
    fault(broken)
    exact = decoded(broken)[replay.EXACT, "all"]
    assert exact.value is not None and exact.value < 0.5

"""Temperature, top-k and top-p against transformers' own warpers, and the rate of greedy drafts against plain numpy."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from qconvert.errors import UserError
from qconvert_evals.metrics import acceptance
from qconvert_evals.sampling import PLAIN, Sampling, read_sampling
from tests.evals.test_acceptance import rows

SETTINGS = [
    Sampling(0.7, 20, 0.8),
    Sampling(0.6, 20, 0.95),
    Sampling(1.3, 0, 0.5),
    Sampling(1.0, 3, 1.0),
    Sampling(0.5, 1, 1.0),
    Sampling(1.0, 500, 0.05),
]


def logits(count: int = 64, vocabulary: int = 50, seed: int = 0) -> torch.Tensor:
    return 3 * torch.randn(count, vocabulary, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sampling", SETTINGS, ids=str)
def test_as_transformers_does_it(sampling: Sampling) -> None:
    warped = logits().double()
    nobody = torch.zeros(len(warped), 0, dtype=torch.long)
    warped = TemperatureLogitsWarper(sampling.temperature)(nobody, warped)
    if sampling.top_k:
        warped = TopKLogitsWarper(sampling.top_k)(nobody, warped)
    if sampling.top_p < 1:
        warped = TopPLogitsWarper(sampling.top_p)(nobody, warped)
    ours = sampling.probabilities(logits())
    assert torch.equal(ours > 0, warped.isfinite())
    torch.testing.assert_close(ours, warped.softmax(-1), rtol=1e-12, atol=0)


def test_plain_is_the_softmax_and_temperature_zero_is_greedy() -> None:
    assert PLAIN.plain and not Sampling(top_k=5).plain
    assert torch.equal(PLAIN.probabilities(logits()), logits().double().softmax(-1))
    tied = torch.tensor([[1.0, 4.0, 4.0]])
    assert Sampling(0.0).probabilities(tied).tolist() == [[0.0, 1.0, 0.0]]


def by_hand(draft: np.ndarray, target: np.ndarray, temperature: float, top_k: int, top_p: float) -> float:
    """p(argmax q) of one anchor, token by token."""
    p = np.exp(target / temperature - (target / temperature).max())
    order = np.argsort(-p, kind="stable")[: top_k or None]
    p = p / p[order].sum()
    kept, mass = [], 0.0
    for token in order:
        if mass >= top_p:
            break
        kept.append(token)
        mass += p[token]
    token = int(draft.argmax())
    return p[token] / p[kept].sum() if token in kept else 0.0


@pytest.mark.parametrize("sampling", [PLAIN, *SETTINGS[:4]], ids=str)
def test_greedy_drafts_are_accepted_with_the_probability_that_a_server_gives_them(sampling: Sampling) -> None:
    drafts, noise = [logits(seed=1), logits(seed=2)], [logits(seed=3), logits(seed=4)]
    targets = [draft + 0.3 * other for draft, other in zip(drafts, noise, strict=True)]  # alike, so that rates are > 0
    state = acceptance.AcceptanceState("fp8", ["code"], 2, sampling=sampling)
    where = torch.zeros(64, dtype=torch.long)
    acceptance.update(state, drafts, targets, where, where)
    expected = np.array(
        [
            [by_hand(q, p, sampling.temperature, sampling.top_k, sampling.top_p) for q, p in zip(*pair, strict=True)]
            for pair in zip((d.double().numpy() for d in drafts), (t.double().numpy() for t in targets), strict=True)
        ]
    )  # [steps, anchors]
    first, second = expected[0].mean(), (expected[0] * expected[1]).mean()
    assert 0.1 < second < first < 1
    found = rows(acceptance.result(state))
    assert found["mtp.acceptance_sampled_greedy_drafts", "position=1"] == pytest.approx(first, rel=1e-12)
    assert found["mtp.acceptance_sampled_greedy_drafts", "position=2"] == pytest.approx(second, rel=1e-12)
    assert found["mtp.accept_length_sampled_greedy_drafts", "all"] == pytest.approx(1 + first + second, rel=1e-12)


def test_reads_generation_config(tmp_path: Path) -> None:
    assert read_sampling(tmp_path) == PLAIN
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps({"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.0, "do_sample": True}))
    assert read_sampling(tmp_path) == Sampling(0.7, 20, 0.8)
    path.write_text(json.dumps({"repetition_penalty": 1.05, "min_p": None, "top_k": -1}))
    assert read_sampling(tmp_path) == Sampling(unread=("repetition_penalty",))
    assert read_sampling(tmp_path).plain


BROKEN = (
    '{"temperature": -1}',
    '{"top_p": 1.5}',
    '{"top_k": "20"}',
    '{"top_k": 0.5}',
    '{"temperature": NaN}',
    "[]",
    "{",
)


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_generation_config_is_the_users(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(UserError, match=r"no setting of a sampler|cannot be read"):
        read_sampling(tmp_path)

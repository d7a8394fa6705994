"""The trained model in both precisions: speculation writes what plain decoding writes, and its text replays it.

Random weights accept almost no draft, so only a trained model takes the paths on which drafts are kept.
"""

from pathlib import Path

import pytest
import torch

from qconvert.formats import open_weights
from qconvert.quantization import quantize
from qconvert_evals.compare import compare
from qconvert_evals.corpus import Tokenizer
from qconvert_evals.data import Document, load_documents
from qconvert_evals.identity import choose_numerics
from qconvert_evals.results import Measurement, Results
from qconvert_evals.small_model_files import DOMAINS, small_model_path
from qconvert_evals.speculation import LiveSettings
from qconvert_reference.generation import generate, generate_speculative
from qconvert_reference.lane import Lane

DRAFTS = 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    target = tmp_path_factory.mktemp("small") / "fp8"
    quantize(small_model_path(), target)
    return {"bf16": small_model_path(), "fp8": target}


def first_of_each_domain(count: int = 1) -> list[Document]:
    documents = load_documents()
    return [one for domain in DOMAINS for one in [d for d in documents if d.domain == domain][:count]]


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_speculation_writes_what_plain_decoding_writes(folders: dict[str, Path], precision: str) -> None:
    weights = open_weights(folders[precision])
    model = Lane.open(precision, weights, choose_numerics(weights)).model()
    tokenizer, accepted = Tokenizer(folders[precision]), 0
    for document in first_of_each_domain():
        prompt = tokenizer.encode(document.text)[:48]
        with torch.inference_mode():
            plain = generate(model, prompt, 24)
            output = generate_speculative(model, prompt, 24, draft_tokens=DRAFTS)
        assert output.tokens == plain, document.id
        accepted += sum(output.accepted)
    assert accepted >= 4 * 24 // 4  # drafts were really kept: the equality is not that of a loop that rejects all


@pytest.fixture(scope="module")
def results(folders: dict[str, Path]) -> Results:
    live = LiveSettings(prompts=8, prompt_tokens=48, new_tokens=24)
    documents = first_of_each_domain(4)
    return compare(
        folders["bf16"], {"fp8": folders["fp8"]}, documents=documents, tokens=3000, draft_tokens=1, live=live
    )


def one(results: Results, lane: str, name: str, slice_name: str) -> Measurement:
    rows = [m for m in results.measurements if (m.lane, m.name, m.slice) == (lane, name, slice_name)]
    assert len(rows) == 1
    return rows[0]


@pytest.mark.slow
@pytest.mark.parametrize("lane", ["bf16", "fp8"])
def test_the_loops_own_text_replays_it(results: Results, lane: str) -> None:
    """Up to roundings, which decide otherwise at one anchor in a hundred: 5 of some 90 leave room on any machine."""
    gap = one(results, lane, "mtp.live_replay_gap", "position=1")
    exact = one(results, lane, "mtp.live_replay_exact", "all")
    assert gap.value is not None and abs(gap.value) <= 0.05 and gap.n > 50
    assert gap.ci_low is not None and gap.ci_high is not None and gap.ci_low < gap.value < gap.ci_high
    assert exact.value is not None and exact.value >= 0.5 and exact.n == 8


@pytest.mark.slow
def test_a_noise_lane_is_not_decoded(results: Results) -> None:
    live = {m.lane for m in results.measurements if m.name.startswith(("mtp.live", "mtp.acceptance_live"))}
    assert live == {"bf16", "fp8"}
    assert results.tool["sampling"] == {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "unread": []}


@pytest.mark.slow
def test_quantizing_moves_the_trained_model_measurably_but_little(results: Results) -> None:
    drift, noise = (one(results, lane, "logits.kl_mean", "all") for lane in ("fp8", "bf16-noise"))
    assert drift.value is not None and noise.value is not None and drift.ci_low is not None
    assert noise.value < drift.ci_low and drift.value < 0.02

"""The trained model in both precisions: speculation writes what plain decoding writes; both kinds of acceptance agree.

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
def test_live_and_teacher_forced_acceptance_agree_within_their_intervals(results: Results, lane: str) -> None:
    live = one(results, lane, "mtp.acceptance_live", "position=1")
    forced = one(results, lane, "mtp.acceptance_greedy", "position=1,context=generated")
    assert live.value is not None and forced.value is not None and live.n > 50
    assert live.ci_low is not None and live.ci_high is not None
    assert forced.ci_low is not None and forced.ci_high is not None
    assert live.ci_low <= forced.ci_high and forced.ci_low <= live.ci_high


@pytest.mark.slow
def test_quantizing_moves_the_trained_model_measurably_but_little(results: Results) -> None:
    drift, noise = (one(results, lane, "logits.kl_mean", "all") for lane in ("fp8", "bf16-noise"))
    assert drift.value is not None and noise.value is not None and drift.ci_low is not None
    assert noise.value < drift.ci_low and drift.value < 0.02

"""The shipped tasks beside lm-eval's own transformers model (HFLM), sample by sample, in fp32."""

from typing import Any

import pytest
import torch

from qconvert_evals.small_model_files import small_model_path
from qconvert_evals.tasks import sharing
from qconvert_evals.tasks.language_model import LaneLM
from qconvert_evals.tasks.loading import load_tasks
from qconvert_evals.tasks.settings import TaskSettings
from qconvert_evals.tasks.tokenizing import TaskTokenizer
from qconvert_reference.lane import Lane
from qconvert_reference.linear import Numerics
from tests.tasks.conftest import quiet

DOCUMENTS = {
    "small_math": [1], "small_recall": [0], "small_code": [0], "small_prose": [0, 1], "small_context_32": [0],
    "small_needle_16": [0],
}  # fmt: skip
SETTINGS = TaskSettings(tuple(DOCUMENTS))
# Logits of up to 20 stand in fp32 to half a unit of 2^-19, in each of both models; what comes before them errs by as
# little and with either sign. HFLM adds log-probabilities in fp32, so its sum S is right to 2^-23 S; ours adds in fp64.
PER_TOKEN, OF_SUM = 2.0**-19, 2.0**-23


@pytest.fixture(scope="module")
def theirs() -> Any:
    huggingface = pytest.importorskip("lm_eval.models.huggingface")
    return huggingface.HFLM(pretrained=str(small_model_path()), dtype="float32", device="cpu", batch_size=4)


@pytest.fixture(scope="module")
def samples(theirs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    from lm_eval.evaluator import evaluate

    loaded = load_tasks(SETTINGS)
    expected = evaluate(lm=theirs, task_dict=loaded, samples=DOCUMENTS, bootstrap_iters=0)["samples"]
    ours = LaneLM(Lane.open("fp32", small_model_path(), Numerics(torch.float32)), SETTINGS, quiet)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharing, "SHORTEST", sharing.CHUNK)  # so that the choices of small_code share their question
        return evaluate(lm=ours, task_dict=loaded, samples=DOCUMENTS, bootstrap_iters=0)["samples"], expected


@pytest.mark.parametrize("task", SETTINGS.names)
def test_every_sample_is_that_of_transformers(task: str, samples: tuple[dict[str, Any], dict[str, Any]]) -> None:
    ours, expected = (one[task] for one in samples)
    assert len(ours) == len(expected) == len(DOCUMENTS[task])
    for own, wanted in zip(ours, expected, strict=True):
        assert (own["doc_hash"], own["prompt_hash"]) == (wanted["doc_hash"], wanted["prompt_hash"])
        assert own["metrics"] == wanted["metrics"]
        for answers, others in zip(own["resps"], wanted["resps"], strict=True):
            same_answer(answers[0], others[0], own["arguments"])


def same_answer(own: Any, wanted: Any, arguments: Any) -> None:
    """Equal text; or a log-likelihood within what the tokens scored (the last argument's) may err."""
    if isinstance(own, str):
        assert own == wanted and own
        return
    if isinstance(own, tuple):
        assert own[1] == wanted[1]
        own, wanted = own[0], wanted[0]
    encode = TaskTokenizer(small_model_path()).encode
    tokens = max(len(encode(args[-1])) for args in arguments)
    assert abs(own - wanted) < PER_TOKEN * tokens + OF_SUM * abs(wanted) and own < -0.01


def test_encoding_is_that_of_transformers(theirs: Any) -> None:
    ours = LaneLM(Lane.open("fp32", small_model_path(), Numerics(torch.float32)), SETTINGS, quiet)
    assert (ours.prefix_token_id, ours.max_length) == (theirs.prefix_token_id, theirs.max_length)
    for text in ("a b", " a\n\n  b", "<|endoftext|>a", "ünï<|endoftext|>", ""):
        assert ours.tok_encode(text) == theirs.tok_encode(text), text
    for context, continuation in (("a ", "b"), ("Question:", " yes"), ("x\n\n", "\ny"), ("let a =", " 12")):
        assert ours._encode_pair(context, continuation) == theirs._encode_pair(context, continuation)

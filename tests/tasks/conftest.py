"""A tiny model with a byte tokenizer, and helpers to run tasks without a comparison around them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer, processors

from qconvert_reference.lane import Lane
from qconvert_reference.linear import Numerics
from tests.evals.tiny_pair import write_tokenizer
from tests.tiny import tiny_config, write_tiny_checkpoint

pytest.importorskip("lm_eval")


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def quiet(stage: str, total: int) -> Callable[[], None]:
    """Progress that nobody watches."""
    return lambda: None


def write_model(folder: Path, bos: bool = False, **config: Any) -> Path:
    """256 byte tokens and <s>, </s>, <think>, </think>; with `bos` the tokenizer puts <s> in front of every text."""
    write_tiny_checkpoint(folder, tiny_config(vocab_size=260, eos_token_id=257, **config), shards=1)
    write_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.add_tokens([AddedToken("<think>"), AddedToken("</think>")])
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 256)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>" if bos else None, "eos_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [257]}))
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that can take 64 tokens."""
    return write_model(tmp_path_factory.mktemp("tasks") / "bf16", max_position_embeddings=64)


@pytest.fixture(scope="session")
def lane(tiny: Path) -> Lane:
    """It in fp32."""
    return Lane.open("fp32", tiny, Numerics(torch.float32))

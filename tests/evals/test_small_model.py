"""The model and the texts inside the package: complete, loadable elsewhere, and good enough that its numbers mean
something.
"""

import hashlib
import json

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from qconvert.checkpoint import Checkpoint, load_safetensors
from qconvert.families import family_of
from qconvert_evals.data import load_documents
from qconvert_evals.small_model_files import DOMAINS, small_model_path, text_paths
from qconvert_reference.config import ModelConfig
from qconvert_reference.linear import Numerics
from qconvert_reference.models.qwen3_next import Model
from training.data import is_held_out
from training.generated import math_document, recall_document
from training.measure import measure
from training.model import CONFIG, build

MEGABYTE = 1_000_000
TRAINED_SEED = 0
PER_DOMAIN, TOKENS = 4, 384


@pytest.fixture(scope="module")
def model() -> Model:
    return build(load_safetensors(small_model_path() / "model.safetensors"))


@pytest.fixture(scope="module")
def found(model: Model) -> dict[str, dict[str, float]]:
    tokenizer = Tokenizer.from_file(str(small_model_path() / "tokenizer.json"))
    texts = {domain: path.read_text().split("\n")[:PER_DOMAIN] for domain, path in text_paths().items()}
    documents = [(d, tokenizer.encode(json.loads(line)["text"]).ids[:TOKENS]) for d, t in texts.items() for line in t]
    return measure(model, documents)


def test_it_is_small_and_holds_exactly_the_tensors_of_its_family() -> None:
    checkpoint = Checkpoint.open(small_model_path())
    assert (small_model_path() / "model.safetensors").stat().st_size <= 25 * MEGABYTE
    inventory = family_of(checkpoint.config).inventory(checkpoint.config)
    assert {name: info.shape for name, info in checkpoint.tensors.items()} == inventory
    assert {info.dtype for info in checkpoint.tensors.values()} == {"BF16"}
    assert any(name.startswith("mtp.") for name in inventory)


def test_its_config_has_every_feature_of_the_large_one_in_the_published_spelling() -> None:
    config = Checkpoint.open(small_model_path()).config
    assert config == CONFIG
    assert config["num_hidden_layers"] == config["full_attention_interval"] == 4  # three linear layers, one full
    assert config["num_experts"] == 16 and config["num_experts_per_tok"] == 4
    assert config["partial_rotary_factor"] == 0.25 and config["torch_dtype"] == "bfloat16"
    assert not {"layer_types", "rope_parameters", "dtype", "quantization_config"} & set(config)


def test_every_quantized_dimension_is_a_multiple_of_the_block() -> None:
    checkpoint = Checkpoint.open(small_model_path())
    family = family_of(checkpoint.config)
    linear = [
        info.shape
        for name, info in checkpoint.tensors.items()
        if family.kind(name).removeprefix("mtp.").split(".")[-1].endswith(("_proj", "in_proj_qkvz"))
    ]
    assert linear and all(size % 128 == 0 for shape in linear for size in shape)


def test_transformers_loads_it_whole_and_computes_the_same() -> None:
    other, report = AutoModelForCausalLM.from_pretrained(
        small_model_path(), dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["mismatched_keys"]
    assert all(name.startswith("mtp.") for name in report["unexpected_keys"])
    tokenizer = AutoTokenizer.from_pretrained(small_model_path())
    text = json.loads(text_paths()["code"].read_text().split("\n")[0])["text"]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    weights = load_safetensors(small_model_path() / "model.safetensors")
    ours = Model(ModelConfig.from_dict(CONFIG), weights.__getitem__, Numerics(torch.float32))
    tokens = torch.tensor([tokenizer(text)["input_ids"][:128]])
    with torch.no_grad():
        difference = (ours(tokens).logits - other(tokens).logits).abs().max()
    # fp32 in another order: 2^-24 of logits up to about 30, some hundred roundings deep.
    assert difference < 30 * 100 * 2**-24


def test_it_predicts_held_out_text_far_better_than_single_tokens_could(found: dict[str, dict[str, float]]) -> None:
    for domain in DOMAINS:
        assert found[domain]["loss"] < 0.8 * found[domain]["unigram_entropy"], domain
    assert found["all"]["loss"] < 0.5 * found["all"]["unigram_entropy"]


def test_its_drafts_are_accepted(found: dict[str, dict[str, float]]) -> None:
    assert found["all"]["acceptance1"] > 0.6


def test_the_card_states_the_model_that_lies_beside_it() -> None:
    digest = hashlib.sha256((small_model_path() / "model.safetensors").read_bytes()).hexdigest()
    card = (small_model_path() / "README.md").read_text()
    assert digest in card and "{{" not in card


def test_the_texts_are_many_and_of_a_size() -> None:
    documents = load_documents()
    assert len({document.id for document in documents}) == len(documents)
    for domain in DOMAINS:
        own = [document for document in documents if document.domain == domain]
        assert 24 <= len(own) <= 40
        assert all(1200 <= len(document.text) <= 2500 for document in own)


def test_the_texts_are_not_among_what_the_seeds_of_the_training_make() -> None:
    texts = {document.text for document in load_documents()}
    assert not texts & {make(seed) for make in (math_document, recall_document) for seed in range(200)}


def test_library_texts_come_from_held_out_files_and_carry_their_notice() -> None:
    names = [d.id.partition("/")[2].partition("#")[0] for d in load_documents() if d.domain in ("code", "prose")]
    assert names and all(is_held_out(name, TRAINED_SEED) for name in names)
    notice = (text_paths()["code"].parent / "NOTICE").read_text()
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in notice

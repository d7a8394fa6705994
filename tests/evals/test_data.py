"""Where documents come from, and how they become batches within a token budget."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from qconvert.errors import UserError
from qconvert_evals.corpus import Tokenizer, make_corpus
from qconvert_evals.data import Document, load_documents
from tests.evals.tiny_pair import write_tokenizer


def test_jsonl(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    rows = [{"text": "a\u2028b", "domain": "code", "id": "x"}, {"text": "c"}, {"text": "  "}]
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n")
    assert load_documents(str(file)) == [Document("x", "code", "a\u2028b"), Document("mine/2", "mine", "c")]


def test_text_is_cut_at_line_ends(tmp_path: Path) -> None:
    file = tmp_path / "book.txt"
    text = "".join(f"line {number}\n" for number in range(2000))
    file.write_text(text)
    documents = load_documents(str(file))
    assert "".join(one.text for one in documents) == text
    assert len(documents) == 5 and all(one.text.endswith("\n") for one in documents)


@pytest.mark.parametrize(
    ("content", "message"),
    [("not json\n", "not JSON"), ('{"txt": 1}\n', "has no text"), ("\n", "no text to measure")],
)
def test_bad_jsonl_names_the_line(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        load_documents(str(file))


def test_missing_file() -> None:
    with pytest.raises(UserError, match="no such file"):
        load_documents("nowhere.txt")


def test_data_set_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"qconvert\[data\]"):
        load_documents("someone/corpus")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A data set in a folder, as the hub lays one out: two configurations, one of them with two splits."""
    pytest.importorskip("datasets")
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in ("one_test", "two_train", "two_validation"):
        rows = [{"label": "a label", "content": f"{name} {number}"} for number in range(3)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    configurations = """---
configs:
- {config_name: one, data_files: [{split: test, path: one_test.jsonl}]}
- config_name: two
  data_files: [{split: train, path: two_train.jsonl}, {split: validation, path: two_validation.jsonl}]
---
"""
    (folder / "README.md").write_text(configurations)
    return folder


def test_data_set_by_configuration_and_split(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(corpus.parent)
    for spec, first in {
        "./corpus:one:": "one_test 0",
        "./corpus:two:": "two_validation 0",  # rather than train
        "./corpus:two:train": "two_train 0",
    }.items():
        found = load_documents(spec)
        assert found[0] == Document("./corpus/0", "corpus", first) and len(found) == 3
    for spec, message in {
        "./corpus": r"available configs: \['one', 'two'\]",
        "./corpus:nope:": r"'nope' not found. Available: \['one', 'two'\]",
        "./corpus:two:test": r"Bad split: test. Available splits: \['train', 'validation'\]",
        "./corpus:a:b:c": "names no data set",
    }.items():
        with pytest.raises(UserError, match=message):
            load_documents(spec)


def test_data_set_without_configurations(corpus: Path) -> None:
    (corpus / "README.md").unlink()
    for name in ("one_test", "two_train"):
        (corpus / f"{name}.jsonl").unlink()
    (corpus / "two_validation.jsonl").rename(corpus / "validation.jsonl")
    assert load_documents(str(corpus))[0].text == "two_validation 0"
    assert len(load_documents(f"{corpus}:validation")) == 3


def test_parquet_file(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("datasets")
    file = tmp_path / "mine.parquet"
    pandas.DataFrame({"id": [1, 2], "text": ["a", None]}).to_parquet(file)
    assert load_documents(str(file)) == [Document(f"{file}/0", "mine", "a")]
    file.write_bytes(b"no parquet")
    with pytest.raises(UserError, match="cannot read the data set"):
        load_documents(str(file))
    with pytest.raises(UserError, match="cannot read the data set"):
        load_documents(str(tmp_path / "none.parquet"))


def test_data_set_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")

    def offline(*_: object, **__: object) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match="ConnectionError: no network"):
        load_documents("someone/corpus")


def corpus_of(lengths: dict[str, list[int]], tokens: int, seq_len: int = 512):
    documents = [Document(f"{d}{n}", d, "x" * length) for d, sizes in lengths.items() for n, length in enumerate(sizes)]
    return make_corpus(documents, lambda text: [7] * len(text), tokens=tokens, seq_len=seq_len, vocab_size=8)


def test_budget_is_spread_over_domains_and_documents() -> None:
    corpus = corpus_of({"code": [3000] * 4, "prose": [600] * 40}, tokens=8192)
    spent = Counter()
    for one in corpus.sequences:
        spent[corpus.domains[one.document]] += len(one.tokens)
    assert spent == {"code": 4096, "prose": 4096}
    assert len({one.document for one in corpus.sequences}) == 4 + 16  # 16 shares of 256 tokens
    code = [one for one in corpus.sequences if one.document == 0]
    assert [(one.start, len(one.tokens)) for one in code] == [(0, 512), (512, 512)]


def test_short_texts_give_what_they_have() -> None:
    corpus = corpus_of({"code": [1, 2, 30]}, tokens=8192)
    assert [len(one.tokens) for one in corpus.sequences] == [2, 30]
    with pytest.raises(UserError, match="two tokens"):
        corpus_of({"code": [1]}, tokens=100)


def test_batches_hold_every_sequence_once() -> None:
    corpus = corpus_of({"code": [40, 700, 90, 512, 3]}, tokens=4000)
    seen = sorted(number for batch in corpus.batches for number in batch.numbers.tolist())
    assert seen == list(range(len(corpus.sequences)))
    for batch in corpus.batches:
        assert torch.equal(batch.mask().sum(1), batch.lengths)
        assert torch.equal(batch.mask(drop=1).sum(1), batch.lengths - 1)
        assert bool((batch.tokens[batch.mask()] == 7).all()) and bool((batch.tokens[~batch.mask()] == 0).all())


def test_hash_tells_other_tokens_and_other_cuts() -> None:
    lengths = {"code": [300, 40]}
    corpus = corpus_of(lengths, tokens=4000)
    assert corpus.sha256 == corpus_of(lengths, tokens=4000).sha256
    assert corpus.sha256 != corpus_of({"code": [40, 300]}, tokens=4000).sha256
    assert corpus.sha256 != corpus_of(lengths, tokens=4000, seq_len=256).sha256


def test_foreign_tokenizer_is_refused() -> None:
    with pytest.raises(UserError, match="do not belong together"):
        make_corpus([Document("a", "d", "xyz")], lambda text: [9] * 3, tokens=10, seq_len=4, vocab_size=9)


def test_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer"):
        Tokenizer(tmp_path)
    write_tokenizer(tmp_path)
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.encode("def f():\n")) == "def f():\n"
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot read the tokenizer"):
        Tokenizer(tmp_path)

"""INT4 folders in every format and of the calibrated methods, made once."""

import json
from pathlib import Path

import pytest

from qconvert.quantization import convert, quantize
from tests.evals.tiny_pair import some_documents, write_tokenizer
from tests.int4.folders import CALIBRATED, CONFIG, FORMATS, run
from tests.tiny import write_tiny_checkpoint


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("int4") / "source", CONFIG)


@pytest.fixture(scope="session")
def folders(source: Path) -> dict[str, Path]:
    """One folder for each format, each converted from the one before; the last one is back at compressed-tensors."""
    found = {"compressed-tensors": source.parent / "compressed-tensors"}
    quantize(source, found["compressed-tensors"], scheme="int4-g64")
    for before, name in zip(FORMATS, [*FORMATS[1:], "back"], strict=True):
        found[name] = source.parent / name
        convert(found[before], found[name], file_format="compressed-tensors" if name == "back" else name)
    return found


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "text.jsonl"
    file.write_text("".join(json.dumps({"text": one.text}) + "\n" for one in some_documents(8, 120)))
    return file


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = write_tiny_checkpoint(tmp_path_factory.mktemp("calibrated") / "source", CONFIG)
    write_tokenizer(source)
    return source


@pytest.fixture(scope="session")
def made(model: Path, text: Path) -> dict[str, Path]:
    """One folder for each method."""
    found = {}
    for method in CALIBRATED:
        found[method] = model.parent / method
        done = run("quantize", model, found[method], "--scheme", "int4-g32", "--method", method,
                   "--calibration", text, "--calibration-tokens", 1000, "--recipe", "all-linears")  # fmt: skip
        assert done.exit_code == 0, done.output
        assert "0 of 15 modules saw fewer than 512" not in done.output and "modules saw fewer than 512" in done.output
    return found

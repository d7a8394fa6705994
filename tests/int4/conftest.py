"""INT4 folders in every format, made once."""

from pathlib import Path

import pytest

from qconvert.quantization import convert, quantize
from tests.int4.folders import CONFIG, FORMATS
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

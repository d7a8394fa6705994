"""An INT4 folder as a lane: the reference model computes with exactly its dequantized weights, in every format."""

from pathlib import Path

import pytest
import torch

from qconvert.formats import open_weights
from qconvert.quantization import dequantize, quantize
from qconvert_evals.identity import choose_numerics
from qconvert_reference.lane import Lane
from qconvert_reference.linear import Numerics
from tests.int4.folders import FORMATS


@pytest.mark.parametrize("name", FORMATS)
def test_lane_computes_with_the_dequantized_weights(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    dequantize(folders[name], tmp_path / "plain")
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        ours, plain = (
            Lane.open("lane", folder, Numerics()).model()(tokens).logits
            for folder in (folders[name], tmp_path / "plain")
        )
    assert torch.equal(ours, plain)


def test_activations_are_those_that_the_config_asks_for(source: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    assert choose_numerics(open_weights(folders["awq"])).activations == "none"
    assert choose_numerics(open_weights(folders["compressed-tensors"])).activations == "none"
    quantize(source, tmp_path / "fp8", file_format="compressed-tensors")
    assert choose_numerics(open_weights(tmp_path / "fp8")).activations == "fp8-group128"

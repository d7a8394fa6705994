"""Back to BF16: the numbers' own values, the original config text, and another library as a witness."""

import json
from pathlib import Path

import pytest
import torch
from compressed_tensors.entrypoints.convert.converters import FP8BlockDequantizer

from qconvert.checkpoint import CONFIG, Checkpoint, load_safetensors, save_safetensors, write_checkpoint
from qconvert.errors import UserError
from qconvert.formats import open_weights
from qconvert.quantization import dequantize, quantize
from qconvert.schemes import QuantizedWeight
from tests.tiny import tiny_config, write_tiny_checkpoint

RAGGED = tiny_config(moe_intermediate_size=96, shared_expert_intermediate_size=160, hidden_size=192)


def decoded(weight: torch.Tensor | QuantizedWeight) -> torch.Tensor:
    return weight.dequantize(torch.float32) if isinstance(weight, QuantizedWeight) else weight


@pytest.fixture(scope="module", params=["whole blocks", "partial blocks"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("dequantize")
    source = write_tiny_checkpoint(root / "source", tiny_config() if request.param == "whole blocks" else RAGGED)
    quantize(source, root / "fp8", max_shard_size=400_000)
    return source, root / "fp8"


def test_names_shapes_types_and_config_are_those_of_the_source(pair: tuple[Path, Path], tmp_path: Path) -> None:
    source, converted = pair
    manifest = dequantize(converted, tmp_path / "back", workers=2)
    before, after = Checkpoint.open(source), Checkpoint.open(tmp_path / "back")
    assert {(t.name, t.dtype, t.shape) for t in after.tensors.values()} == {
        (t.name, t.dtype, t.shape) for t in before.tensors.values()
    }
    assert after.config_text == before.config_text
    assert after.other_files() == before.other_files()
    assert manifest.counts["dequantized"] == len(open_weights(converted).quantized)


def test_values_are_those_of_the_numbers(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qconvert.shard.PIECE_BYTES", 128 * 192)  # several pieces for each weight
    dequantize(pair[1], tmp_path / "back")
    weights, back = open_weights(pair[1]), Checkpoint.open(tmp_path / "back")
    for name in weights.names:
        want = weights.load(name)
        assert torch.equal(back.read(name), want.dequantize() if isinstance(want, QuantizedWeight) else want)


def test_compressed_tensors_gives_the_same_weights(pair: tuple[Path, Path], tmp_path: Path) -> None:
    dequantize(pair[1], tmp_path / "back")
    back, witness = Checkpoint.open(tmp_path / "back"), FP8BlockDequantizer.from_pretrained(str(pair[1]))
    seen = 0
    for shard in pair[1].glob("*.safetensors"):
        for name, want in witness.process(load_safetensors(shard)).items():
            assert torch.equal(back.read(name), want), name
            seen += 1
    assert seen == len(back.tensors)


def test_quantizing_again_gives_the_same_numbers(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """With powers of two the way through BF16 is lossless, so the second conversion finds the same numbers."""
    quantize(pair[0], tmp_path / "first", scales="pow2")
    dequantize(tmp_path / "first", tmp_path / "back")
    quantize(tmp_path / "back", tmp_path / "second", scales="pow2")
    first, second = open_weights(tmp_path / "first"), open_weights(tmp_path / "second")
    for name in first.names:
        assert torch.equal(decoded(first.load(name)), decoded(second.load(name))), name


@pytest.mark.parametrize("scale_type", [torch.float32, torch.float16])
def test_scales_of_other_publishers(pair: tuple[Path, Path], tmp_path: Path, scale_type: torch.dtype) -> None:
    weights = open_weights(pair[1])
    tensors = {name: weights.checkpoint.read(name) for name in weights.checkpoint.tensors}
    tensors |= {name: value.to(scale_type) for name, value in tensors.items() if name.endswith("_scale_inv")}
    source = write_checkpoint(tmp_path / "source", weights.config, tensors)
    dequantize(source, tmp_path / "back")
    changed = open_weights(source)
    for name in changed.quantized:
        want = changed.load(name)
        assert isinstance(want, QuantizedWeight)
        assert torch.equal(Checkpoint.open(tmp_path / "back").read(name), want.dequantize())


def test_refusals(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not quantized"):
        dequantize(pair[0], tmp_path / "out")
    with pytest.raises(UserError, match="quantized already: quant_method 'fp8'"):
        quantize(pair[1], tmp_path / "out")
    config = json.loads((pair[1] / CONFIG).read_text())
    lonely = write_checkpoint(tmp_path / "lonely", config, {"x.weight": torch.zeros(2, 2, dtype=torch.float8_e4m3fn)})
    with pytest.raises(UserError, match=r"x\.weight is FP8 but has no usable scale"):
        dequantize(lonely, tmp_path / "out")
    with pytest.raises(UserError, match="no such folder"):
        dequantize(tmp_path / "nowhere", tmp_path / "out")


def test_a_scale_of_the_wrong_shape_is_refused(tmp_path: Path) -> None:
    quantize(write_tiny_checkpoint(tmp_path / "source"), tmp_path / "fp8")
    tensors = load_safetensors(tmp_path / "fp8" / "model.safetensors")
    name = "model.layers.0.linear_attn.in_proj_qkvz.weight_scale_inv"
    tensors[name] = tensors[name][:-1]
    save_safetensors(tmp_path / "fp8" / "model.safetensors", tensors)
    with pytest.raises(UserError, match=r"in_proj_qkvz\.weight_scale_inv does not fit its weight"):
        dequantize(tmp_path / "fp8", tmp_path / "out")

"""INT4 folders in the reference model and the weights metric: the lane computes with what the numbers stand for, the
stripes of a conversion join to the numbers of whole weights, and one wrong scale is found in its group."""

from pathlib import Path

import pytest
import torch

from qconvert import shard
from qconvert.checkpoint import Checkpoint
from qconvert.formats import open_weights
from qconvert.quantization import dequantize, quantize
from qconvert.schemes import QuantizedWeight, get_scheme
from qconvert_evals import weight_errors
from qconvert_evals.metrics import weights as weights_metric
from qconvert_reference.lane import Lane
from qconvert_reference.linear import DequantizingLinear, Numerics
from tests.tiny import write_tiny_checkpoint

KINDS = [("int4-g128", None, False), ("int4-g32", "rtn", False), ("int4-g64", None, True)]


@pytest.mark.parametrize("scheme, method, asymmetric", KINDS)
def test_stripes_join_to_the_numbers_of_whole_weights(
    scheme: str, method: str | None, asymmetric: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_tiny_checkpoint(tmp_path / "bf16")
    monkeypatch.setattr(shard, "PIECE_BYTES", 7 * 2 * 128)  # seven rows
    quantize(source, tmp_path / "int4", scheme=scheme, method=method, asymmetric=asymmetric, workers=2)
    original, weights = Checkpoint.open(source), open_weights(tmp_path / "int4")
    whole = get_scheme(scheme, method=method, asymmetric=asymmetric)
    assert len(weights.quantized) == 4 * 4 * 3  # layers, experts, projections; the MTP head stays
    for name in weights.quantized:
        got, want = weights.load(name), whole.quantize(original.read(name))
        assert isinstance(got, QuantizedWeight)
        assert torch.equal(got.codes, want.codes) and torch.equal(got.scales, want.scales), name
        if want.zeros is not None:
            assert got.zeros is not None and torch.equal(got.zeros, want.zeros), name


def test_lane_computes_with_what_the_numbers_stand_for(tokens: torch.Tensor, tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "bf16")
    quantize(source, tmp_path / "int4", scheme="int4-g32", asymmetric=True)
    dequantize(tmp_path / "int4", tmp_path / "back")
    lane, plain = (Lane.open(name, tmp_path / name, Numerics()) for name in ("int4", "back"))
    expert = lane.layer(0).mlp.experts[3]
    assert all(isinstance(one, DequantizingLinear) for one in (expert.gate_proj, expert.up_proj, expert.down_proj))
    assert lane.has_mtp
    with torch.no_grad():
        assert torch.equal(lane.model()(tokens).logits, plain.model()(tokens).logits)


def test_weights_metric_measures_by_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_tiny_checkpoint(tmp_path / "bf16")
    quantize(source, tmp_path / "int4", scheme="int4-g64")
    base, candidate = open_weights(source), open_weights(tmp_path / "int4")

    def worst() -> weights_metric.TensorError:
        state = weight_errors.measure("int4", base, candidate, lambda: None)
        assert weights_metric.kept_changed(state) == [] and state.missing == [] and state.extra == []
        assert sum(one.touched for one in state.tensors) == len(candidate.quantized)
        return max(state.tensors, key=lambda one: one.block_error)

    assert 0.1 < worst().block_error < 0.3
    name, load = "model.layers.2.mlp.experts.1.down_proj.weight", candidate.load

    def damaged(wanted: str) -> torch.Tensor | QuantizedWeight:
        got = load(wanted)
        if wanted == name and isinstance(got, QuantizedWeight):
            got.scales[77, 1] *= 2
        return got

    monkeypatch.setattr(candidate, "load", damaged)
    found = worst()
    assert found.tensor == name and found.block == (77, 64) and found.block_error > 0.9

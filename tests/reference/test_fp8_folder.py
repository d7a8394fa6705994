"""The FP8 folder in both readers: transformers finds every key, sees our weights, and computes the same logits."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qconvert.errors import UserError
from qconvert.formats import open_weights
from qconvert.quantization import dequantize, quantize
from qconvert.schemes import QuantizedWeight, get_scheme
from qconvert_reference.lane import Lane
from qconvert_reference.linear import Numerics, load_tensor
from tests.tiny import tiny_config, write_tiny_checkpoint


def test_transformers_loads_the_folder_and_agrees(tokens: torch.Tensor, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    source, folder = write_tiny_checkpoint(tmp_path / "bf16", tiny_config()), tmp_path / "fp8"
    quantize(source, folder)
    theirs, loading = transformers.Qwen3NextForCausalLM.from_pretrained(folder, dtype="auto", output_loading_info=True)
    assert {key: list(value) for key, value in loading.items() if value} == {}
    weights = open_weights(folder)
    quantized = [name for name in weights.names if isinstance(weights.load(name), QuantizedWeight)]
    assert len([name for name in quantized if name.startswith("model.")]) == 4 * 3 * (4 + 1) + 3 * 2 + 4
    theirs = theirs.float().eval()
    _same_weights(theirs, weights.load, weights.names)
    # The values that both hold are BF16; computing with them in fp32 leaves only the order of additions.
    model = Lane.open("fp8", _dequantized(folder, tmp_path / "dequantized"), Numerics(torch.float32)).model()
    with torch.no_grad():
        assert (model(tokens).logits - theirs(tokens).logits).abs().max() < 1e-4


def _dequantized(folder: Path, target: Path) -> Path:
    dequantize(folder, target)
    return target


def _same_weights(theirs: Any, load: Callable[[str], Any], names: tuple[str, ...]) -> None:
    """Each of our weights, dequantized, bit for bit in transformers' memory (experts stacked, gate and up joined)."""
    state = theirs.state_dict()
    for name in names:
        if name.startswith("mtp."):
            continue  # transformers has no head for this model
        weight = load(name)
        ours = weight.dequantize() if isinstance(weight, QuantizedWeight) else weight
        prefix, _, rest = name.partition(".mlp.experts.")
        if not rest:
            found = state[name]
        else:
            expert, part, _ = rest.split(".")
            if part == "down_proj":
                found = state[f"{prefix}.mlp.experts.down_proj"][int(expert)]
            else:
                found = state[f"{prefix}.mlp.experts.gate_up_proj"][int(expert)].chunk(2)[part == "up_proj"]
        assert torch.equal(found, ours.float()), name


def test_our_lane_computes_with_the_dequantized_weights(tokens: torch.Tensor, tmp_path: Path) -> None:
    """The FP8 lane in BF16 is the BF16 lane of the dequantized folder, bit for bit; the head too."""
    source, folder = write_tiny_checkpoint(tmp_path / "bf16", tiny_config()), tmp_path / "fp8"
    quantize(source, folder)
    fp8 = Lane.open("fp8", folder, Numerics())
    plain = Lane.open("plain", _dequantized(folder, tmp_path / "dequantized"), Numerics())
    original = Lane.open("bf16", source, Numerics()).model()
    with torch.no_grad():
        out, expected = fp8.model()(tokens), plain.model()(tokens)
        assert torch.equal(out.logits, expected.logits)
        assert not torch.equal(out.logits, original(tokens).logits)
        heads = [lane.mtp() for lane in (fp8, plain)]
        drafts = [head(tokens[:, 1:], out.normed[:, :-1]).normed for head in heads if head is not None]
    assert len(drafts) == 2 and torch.equal(*drafts)


def test_layers_on_demand_equal_the_resident_model(tokens: torch.Tensor, tmp_path: Path) -> None:
    source, folder = write_tiny_checkpoint(tmp_path / "bf16", tiny_config()), tmp_path / "fp8"
    quantize(source, folder)
    lane = Lane.open("fp8", folder, Numerics(activations="fp8-group128"))
    with torch.no_grad():
        hidden = lane.embed(tokens)
        for index in range(lane.num_layers):
            hidden = lane.layer(index)(hidden).hidden
        assert torch.equal(lane.logits(lane.finish(hidden)), lane.model()(tokens).logits)


def test_a_quantized_norm_is_refused_by_name() -> None:
    weight = get_scheme("fp8-block128").quantize(torch.ones(4, 4))
    with pytest.raises(UserError, match=r"model\.norm\.weight"):
        load_tensor(lambda name: weight, "model.norm.weight")

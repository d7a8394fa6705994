"""`convert` from end to end: round trips over shapes and settings, types of scales, and what is refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from qconvert.checkpoint import MANIFEST, TENSOR_REPORT, load_safetensors, read_config, write_checkpoint
from qconvert.errors import UserError
from qconvert.families import family_of
from qconvert.quantization import convert, plan_convert, quantize
from tests.int4.folders import damage, run
from tests.int4.foreign import bell, load
from tests.tiny import tiny_config, write_tiny_checkpoint


def files(folder: Path) -> dict[str, bytes]:
    """All but the records of the run that made the folder."""
    records = (MANIFEST, TENSOR_REPORT)
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name not in records}


def a_source(folder: Path, hidden: int, width: int, experts: int, dtype: torch.dtype, seed: int) -> Path:
    """A model with one layer; the sizes that stay small are those that do not matter here."""
    config = tiny_config(
        num_hidden_layers=1, layer_types=["linear_attention"], num_experts=experts, hidden_size=hidden,
        moe_intermediate_size=width, shared_expert_intermediate_size=32, head_dim=32, num_attention_heads=2,
        num_key_value_heads=1, linear_key_head_dim=16, linear_value_head_dim=16, vocab_size=32,
    )  # fmt: skip
    shapes = family_of(config).inventory(config)
    tensors = {name: bell(shape, seed + place).to(dtype) for place, (name, shape) in enumerate(shapes.items())}
    return write_checkpoint(folder, config, tensors, shards=1)


@hypothesis.settings(
    max_examples=5, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(
    group=st.sampled_from([32, 64, 128]), groups=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    experts=st.integers(2, 4),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]), asymmetric=st.booleans(),
    method=st.sampled_from(["rtn", "mse"]), everything=st.booleans(),
    order=st.permutations(["gptq", "awq", "auto-round"]), shard=st.sampled_from([10**9, 40_000]),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_round_trips_end_in_identical_bytes(
    tmp_path: Path, group: int, groups: tuple[int, int], experts: int, dtype: torch.dtype, asymmetric: bool,
    method: str, everything: bool, order: list[str], shard: int, seed: int,
) -> None:  # fmt: skip
    """compressed-tensors through all others in any order and back: weights, index and config, byte for byte."""
    work = tmp_path / "trip"
    shutil.rmtree(work, ignore_errors=True)
    source = a_source(work / "source", group * groups[0], group * groups[1], experts, dtype, seed)
    hypothesis.assume(not everything or group == 32)  # shared experts and heads are 32 wide
    quantize(
        source, work / "0", scheme=f"int4-g{group}", method=method, asymmetric=asymmetric, max_shard_size=shard,
        recipe="all-linears" if everything else "default",
    )  # fmt: skip
    path = ["awq"] if asymmetric else order  # zero points of 0 have no place in GPTQ version 1
    for step, name in enumerate([*path, "compressed-tensors"]):
        convert(work / str(step), work / str(step + 1), file_format=name, max_shard_size=shard)
        block = json.loads((work / str(step + 1) / "config.json").read_text())["quantization_config"]
        assert block["quant_method"] == name
    first, last = files(work / "0"), files(work / str(len(path) + 1))
    assert json.loads(first["config.json"]) == json.loads(last["config.json"])
    if dtype == torch.bfloat16 and shard == 10**9:
        assert first == last
    assert everything_in(work / "0") == everything_in(work / str(len(path) + 1))


def everything_in(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Every tensor of all shards, whatever their order."""
    tensors = {name: data for path in folder.glob("*.safetensors") for name, data in load_safetensors(path).items()}
    return {name: (data.dtype, tuple(data.shape), bits(data)) for name, data in tensors.items()}


def bits(data: torch.Tensor) -> bytes:
    return data.flatten().view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("scale_type", [torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["int4", "fp8"])
def test_scales_keep_their_type(kind: str, scale_type: torch.dtype, source: Path, tmp_path: Path) -> None:
    """No type of 16 bits holds all numbers of the other: scales are never rounded on the way, in no direction."""
    first, other = ("compressed-tensors", "gptq") if kind == "int4" else ("compressed-tensors", "fp8")
    quantize(source, tmp_path / "a", scheme="int4-g64" if kind == "int4" else "fp8-block128", file_format=first)

    def retype(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("weight_scale")]:
            tensors[name] = (tensors[name].float() * 1.001).to(scale_type)

    damage(tmp_path / "a", retype)
    (tmp_path / "a" / MANIFEST).unlink()
    convert(tmp_path / "a", tmp_path / "b", file_format=other)
    kinds = {
        data.dtype
        for name, data in load_safetensors(tmp_path / "b" / "model.safetensors").items()
        if name.endswith(("scales", "scale_inv"))
    }
    assert kinds == {scale_type}
    convert(tmp_path / "b", tmp_path / "c", file_format=first)
    assert everything_in(tmp_path / "a") == everything_in(tmp_path / "c")
    if kind == "int4":
        warnings = json.loads(run("inspect", tmp_path / "b", "--json").output)["warnings"]
        assert any("hold scales in the model's type, BF16" in warning["text"] for warning in warnings)


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"])
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def group_of(block: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = block["config_groups"]["group_0"]
    return found


TOKEN = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True, "symmetric": True}
LOST: list[tuple[str, str, str, Callable[[dict[str, Any]], object]]] = [
    ("int4", "gptq", "input_activations", lambda block: group_of(block).update(input_activations=TOKEN)),
    ("int4", "awq", "kv_cache_scheme", lambda block: block.update(kv_cache_scheme=TOKEN)),
    ("int4", "awq", "transform_config", lambda block: block.update(transform_config={"config_groups": {"u": 1}})),
    ("int4", "awq", "output_activations", lambda block: group_of(block).update(output_activations=TOKEN)),
    ("fp8", "fp8", "input_activations", lambda block: group_of(block).update(input_activations=TOKEN)),
    ("fp8", "fp8", "input_activations None", lambda block: group_of(block).update(input_activations=None)),
]


@pytest.mark.parametrize("kind, target, setting, change", LOST)
def test_settings_that_would_be_lost_are_refused(
    kind: str, target: str, setting: str, change: Callable[[dict[str, Any]], object], source: Path, tmp_path: Path
) -> None:
    scheme = "int4-g64" if kind == "int4" else "fp8-block128"
    quantize(source, tmp_path / "a", scheme=scheme, file_format="compressed-tensors")
    plan_convert(tmp_path / "a", tmp_path / "b", file_format=target)
    change_config(tmp_path / "a", change)
    with pytest.raises(UserError, match=f"{target} has no word for a setting") as caught:
        plan_convert(tmp_path / "a", tmp_path / "b", file_format=target)
    assert setting in str(caught.value)


def test_settings_of_others_that_would_be_lost_are_refused(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "ar", scheme="int4-g64", file_format="auto-round")
    change_config(tmp_path / "ar", lambda block: block.update(act_bits=8))
    quantize(source, tmp_path / "fp8")
    change_config(tmp_path / "fp8", lambda block: block.update(activation_scheme="static"))
    for name, message in (("ar", "act_bits 8"), ("fp8", "activation_scheme 'static'")):
        with pytest.raises(UserError, match=message):
            plan_convert(tmp_path / name, tmp_path / "out", file_format="compressed-tensors")


def test_rows_that_fill_no_word_are_refused_by_name(tmp_path: Path) -> None:
    source = a_source(tmp_path / "source", 64, 32, 2, torch.bfloat16, 0)
    quantize(source, tmp_path / "a", scheme="int4-g32")
    name = "model.layers.0.mlp.experts.1.up_proj"

    def shorten(tensors: dict[str, torch.Tensor]) -> None:
        for part in ("weight_packed", "weight_scale"):
            tensors[f"{name}.{part}"] = tensors[f"{name}.{part}"][:20].contiguous()
        tensors[f"{name}.weight_shape"][0] = 20

    damage(tmp_path / "a", shorten)
    for target in ("gptq", "awq", "auto-round"):
        with pytest.raises(UserError, match=f"{name}.weight: {target} cannot hold a weight of 20 rows"):
            plan_convert(tmp_path / "a", tmp_path / "b", file_format=target)


def test_fp8_of_llm_compressor(tmp_path: Path) -> None:
    """Its config, its codes and scales in a folder: read, verified, converted to the official format and back."""
    sizes = tiny_config(num_hidden_layers=1, layer_types=["linear_attention"], num_experts=2)
    source = write_tiny_checkpoint(tmp_path / "source", sizes, shards=1)
    quantize(source, tmp_path / "fp8")
    convert(tmp_path / "fp8", tmp_path / "ct", file_format="compressed-tensors")
    (tmp_path / "ct" / MANIFEST).unlink()
    record = load("llm-compressor-matrices-fp8")[1]
    ignored = json.loads((tmp_path / "ct" / "config.json").read_text())["quantization_config"]["ignore"]
    change_config(tmp_path / "ct", lambda block: (block.clear(), block.update(record["config"], ignore=ignored)))
    original = load_safetensors(source / "model.safetensors")

    def as_they_round(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name.removesuffix("_scale") for name in tensors if name.endswith("weight_scale")]:
            scales = tensors[f"{name}_scale"].repeat_interleave(128, 0).repeat_interleave(128, 1)
            rows, columns = original[name].shape
            quotient = original[name] / scales[:rows, :columns]  # in BF16: see test_llm_compressor
            tensors[name] = quotient.clamp(-448, 448).to(torch.float8_e4m3fn)

    damage(tmp_path / "ct", as_they_round)
    done = run("verify", tmp_path / "ct", "--against", source)
    assert done.exit_code == 0, done.output
    convert(tmp_path / "ct", tmp_path / "official", file_format="fp8")
    for against in (tmp_path / "ct", source):
        done = run("verify", tmp_path / "official", "--against", against)
        assert done.exit_code == 0, done.output
    assert read_config(tmp_path / "official")[1] == read_config(tmp_path / "fp8")[1]
    convert(tmp_path / "official", tmp_path / "back", file_format="compressed-tensors")
    assert everything_in(tmp_path / "back") == everything_in(tmp_path / "ct")

"""Folders with several number formats: the recipe, config groups, other people's readers, lanes, faults."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig

from qconvert.errors import UserError
from qconvert.formats import open_weights
from qconvert.formats.config_groups import TOKEN_ACTIVATIONS, group_of, read_groups
from qconvert.quantization import convert, dequantize, plan_quantize, quantize
from qconvert_evals.identity import choose_numerics
from qconvert_reference.linear import make_linear, round_activations
from tests.int4.folders import CONFIG, run
from tests.tiny import write_tiny_checkpoint

ROUTED = "model.layers.0.mlp.experts.1.down_proj.weight"
SHARED = "model.layers.0.mlp.shared_expert.down_proj.weight"
QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("mixed") / "source", CONFIG, shards=1)


@pytest.fixture(scope="module")
def mixed(source: Path) -> Path:
    quantize(source, source.parent / "mixed", scheme="int4-g32", recipe="mixed")
    return source.parent / "mixed"


def block_of(folder: Path) -> dict[str, Any]:
    block: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return block


def edit(folder: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy with another config.json."""
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    change(config["quantization_config"])
    (target / "config.json").write_text(json.dumps(config))
    (target / "qconvert.json").unlink()
    return target


def test_the_recipe(source: Path, mixed: Path) -> None:
    weights = open_weights(mixed)
    names = {name: scheme.name for name, scheme in weights.quantized.items()}
    assert names[ROUTED] == "int4-g32"
    assert names[SHARED] == names[QUERY] == "fp8-block128"
    assert names["model.layers.0.linear_attn.in_proj_qkvz.weight"] == "fp8-block128"
    assert not [name for name in names if name.startswith("mtp.") or "in_proj_ba" in name or name == "lm_head.weight"]
    assert run("verify", mixed, "--against", source).exit_code == 0
    assert run("verify", mixed).exit_code == 0
    with pytest.raises(UserError, match="INT4 experts and FP8 elsewhere"):
        plan_quantize(source, mixed.parent / "out", recipe="mixed")


def test_each_weight_has_the_numbers_of_its_own_scheme(source: Path, mixed: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "int4", scheme="int4-g32")
    quantize(source, tmp_path / "fp8")
    both, int4, fp8 = (open_weights(folder) for folder in (mixed, tmp_path / "int4", tmp_path / "fp8"))
    for name, alone in ((ROUTED, int4), (SHARED, fp8), (QUERY, fp8)):
        one, other = both.load(name), alone.load(name)
        assert not isinstance(one, torch.Tensor) and not isinstance(other, torch.Tensor)
        assert torch.equal(one.codes.view(torch.int8), other.codes.view(torch.int8))
        assert torch.equal(one.scales, other.scales)


def test_compressed_tensors_reads_the_config(mixed: Path) -> None:
    parsed = QuantizationConfig.model_validate(block_of(mixed))
    assert parsed.format == "mixed-precision"
    found = {group.format: group.weights for group in parsed.config_groups.values()}
    assert found["pack-quantized"].num_bits == 4 and found["float-quantized"].block_structure == [128, 128]


def test_every_quantized_module_is_meant_by_one_group_under_all_its_names(mixed: Path) -> None:
    """Engines know q/k/v and gate/up by merged names, too, and all experts by the module that holds them."""
    block = block_of(mixed)
    weights, groups = open_weights(mixed), read_groups(block_of(mixed))
    modules = {name.removesuffix(".weight"): scheme.name for name, scheme in weights.quantized.items()}
    merged = {
        "model.layers.0.mlp.experts": "int4-g32",
        "model.layers.1.self_attn.qkv_proj": "fp8-block128",
        "model.layers.0.mlp.shared_expert.gate_up_proj": "fp8-block128",
    }
    for module, scheme in (modules | merged).items():
        assert [group.scheme for group in groups if group.names(module)] == [scheme], module
        assert not any(re.match(entry.removeprefix("re:"), module) for entry in block["ignore"]), module


def test_transformers_loads_it(source: Path, mixed: Path) -> None:
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        mixed, dtype=torch.bfloat16, output_loading_info=True, attn_implementation="eager"
    )
    unexpected = {key for key in info["unexpected_keys"] if not key.startswith("mtp.")}
    assert not info["missing_keys"] and not unexpected and not info["mismatched_keys"]
    weights, found = open_weights(mixed), dict(model.state_dict())
    for name in (QUERY, SHARED, "model.layers.0.linear_attn.out_proj.weight"):
        numbers = weights.load(name)  # dense layers stay compressed until they are called
        assert torch.equal(found[name].view(torch.int8), numbers.codes.view(torch.int8)), name
        assert torch.equal(found[f"{name}_scale"], numbers.scales), name
    for layer in (0, 1):
        experts = f"model.layers.{layer}.mlp.experts"
        for expert in range(CONFIG["num_experts"]):
            gate, up, down = (
                weights.load(f"{experts}.{expert}.{part}_proj.weight").dequantize() for part in ("gate", "up", "down")
            )
            assert torch.equal(found[f"{experts}.gate_up_proj"][expert], torch.cat((gate, up)))
            assert torch.equal(found[f"{experts}.down_proj"][expert], down)


def test_dequantize_and_back(source: Path, mixed: Path, tmp_path: Path) -> None:
    dequantize(mixed, tmp_path / "plain")
    weights, plain = open_weights(mixed), open_weights(tmp_path / "plain")
    for name in (ROUTED, SHARED):
        numbers, tensor = weights.load(name), plain.load(name)
        assert not isinstance(numbers, torch.Tensor) and isinstance(tensor, torch.Tensor)
        assert torch.equal(numbers.dequantize(), tensor)


def test_formats_for_one_scheme_refuse_several(source: Path, mixed: Path, tmp_path: Path) -> None:
    for name in ("gptq", "awq", "auto-round", "fp8"):
        with pytest.raises(UserError, match=r"holds INT4 only|cannot hold int4-g32"):
            plan_quantize(source, tmp_path / "out", scheme="int4-g32", recipe="mixed", file_format=name)
        with pytest.raises(UserError, match="only folders with one number format"):
            convert(mixed, tmp_path / "out", file_format=name)
    two = tmp_path / "two.toml"
    two.write_text(
        '[[rules]]\nmatch = "model.layers.0.mlp.experts.*"\naction = "int4-g64"\n'
        '[[rules]]\nmatch = "model.layers.1.mlp.experts.*"\naction = "quantize"\n'
        '[[rules]]\nmatch = "*"\naction = "keep"\n'
    )
    with pytest.raises(UserError, match="one number format a folder"):
        plan_quantize(source, tmp_path / "out", scheme="int4-g32", recipe=str(two), file_format="gptq")
    quantize(source, tmp_path / "groups", scheme="int4-g32", recipe=str(two))
    assert block_of(tmp_path / "groups")["format"] == "pack-quantized"
    names = {scheme.name for scheme in open_weights(tmp_path / "groups").quantized.values()}
    assert names == {"int4-g32", "int4-g64"}
    assert run("verify", tmp_path / "groups", "--against", source).exit_code == 0


FAULTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "groups exchanged": lambda block: block["config_groups"].update(
        group_0=block["config_groups"]["group_1"] | {"targets": block["config_groups"]["group_0"]["targets"]},
        group_1=block["config_groups"]["group_0"] | {"targets": block["config_groups"]["group_1"]["targets"]},
    ),
    "a target missing": lambda block: block["config_groups"]["group_0"]["targets"].pop(),
    "another group size": lambda block: block["config_groups"]["group_1"]["weights"].update(group_size=64),
    "a class in the place of paths": lambda block: block["config_groups"]["group_1"].update(targets=["Linear2"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_config_that_says_other_numbers_than_the_disk_is_found(fault: str, mixed: Path, tmp_path: Path) -> None:
    broken = edit(mixed, tmp_path / "broken", FAULTS[fault])
    done = run("verify", broken)
    assert done.exit_code == 1 and "FAIL" in done.output, done.output
    assert "experts" in done.output or "self_attn" in done.output


def test_paths_go_before_classes() -> None:
    int4 = {"weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}}
    fp8 = {
        "num_bits": 8, "type": "float", "symmetric": True, "strategy": "block", "block_structure": [128, 128]
    }  # fmt: skip
    groups = read_groups(
        {"config_groups": {"a": int4 | {"targets": ["Linear"]}, "b": {"weights": fp8, "targets": ["re:.*self_attn.*"]}}}
    )
    found = [group_of(groups, module) for module in ("x.self_attn.q_proj", "x.mlp.experts.0.up_proj")]
    assert [group.scheme for group in found if group is not None] == ["fp8-block128", "int4-g32"]


def test_lanes_quantize_the_inputs_that_the_config_says(mixed: Path) -> None:
    numerics = choose_numerics(open_weights(mixed))
    assert (numerics.activations, numerics.activations_of) == ("fp8-group128", "fp8-")
    weights, x = open_weights(mixed), torch.randn(3, 128)
    for name, rounded in ((ROUTED, False), (SHARED, True)):
        numbers = weights.load(name)
        entering = round_activations(x) if rounded else x.bfloat16()
        assert torch.equal(make_linear(numbers, numerics).input(x), entering), name


def test_w4a8(source: Path, tmp_path: Path) -> None:
    plan = plan_quantize(source, tmp_path / "w4a8", scheme="int4-g128", file_format="w4afp8")
    assert any("Hopper" in warning for warning in plan.warnings)
    assert any("tensor-parallel sizes for experts 128 wide: none" in warning for warning in plan.warnings)
    quantize(source, tmp_path / "w4a8", scheme="int4-g128", file_format="w4afp8")
    parsed = QuantizationConfig.model_validate(block_of(tmp_path / "w4a8"))
    inputs = parsed.config_groups["group_0"].input_activations
    assert (inputs.num_bits, inputs.type, inputs.strategy, inputs.dynamic) == (8, "float", "token", True)
    assert run("verify", tmp_path / "w4a8", "--against", source).exit_code == 0
    weights = open_weights(tmp_path / "w4a8")
    assert weights.format is not None and weights.format.name == "w4afp8"
    numerics = choose_numerics(weights)
    assert (numerics.activations, numerics.activations_of) == ("fp8-token", "int4-")
    quantize(source, tmp_path / "w4a16", scheme="int4-g128")
    assert block_of(tmp_path / "w4a16")["config_groups"]["group_0"]["input_activations"] is None
    numbers, plain = weights.load(ROUTED), open_weights(tmp_path / "w4a16").load(ROUTED)
    assert not isinstance(numbers, torch.Tensor) and not isinstance(plain, torch.Tensor)
    assert torch.equal(numbers.codes, plain.codes)
    convert(tmp_path / "w4a16", tmp_path / "again", file_format="w4afp8")
    assert block_of(tmp_path / "again") == block_of(tmp_path / "w4a8")
    with pytest.raises(UserError, match="input_activations"):
        convert(tmp_path / "w4a8", tmp_path / "lost", file_format="compressed-tensors")


@pytest.mark.parametrize("options", [{"scheme": "int4-g32"}, {"scheme": "int4-g128", "asymmetric": True}, {}])
def test_w4a8_takes_what_engines_have_kernels_for(options: dict[str, Any], source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="symmetric INT4 in groups of 128 only"):
        plan_quantize(source, tmp_path / "out", file_format="w4afp8", **options)


def test_inputs_of_both_kinds_at_once_are_refused(mixed: Path, tmp_path: Path) -> None:
    both = edit(
        mixed,
        tmp_path / "both",
        lambda block: block["config_groups"]["group_1"].update(input_activations=TOKEN_ACTIVATIONS),
    )
    with pytest.raises(UserError, match="cannot imitate together"):
        choose_numerics(open_weights(both))
    assert choose_numerics(open_weights(both), activations="none").activations == "none"


def test_one_scale_a_token() -> None:
    x = torch.cat((torch.randn(2, 128), 100 * torch.randn(2, 128)), -1)
    whole = round_activations(x, 256)
    scale = x.abs().amax(-1, keepdim=True) / 448
    assert torch.equal(whole, (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale)
    assert not torch.equal(whole, round_activations(x))

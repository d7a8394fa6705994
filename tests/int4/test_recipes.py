"""Recipes: what is quantized, what is refused with the reason, what is warned of."""

from pathlib import Path

import pytest

from qconvert.errors import UserError
from qconvert.formats import open_weights
from qconvert.quantization import plan_quantize, quantize
from tests.int4.folders import FORMATS, run
from tests.tiny import tiny_config, write_tiny_checkpoint


def test_all_linears(source: Path, tmp_path: Path) -> None:
    for name in FORMATS:
        quantize(source, tmp_path / name, scheme="int4-g32", file_format=name, recipe="all-linears", method="rtn")
        assert run("verify", tmp_path / name, "--against", source).exit_code == 0
        weights = open_weights(tmp_path / name)
        assert "mtp.layers.0.self_attn.q_proj.weight" in weights.quantized
        assert "model.layers.0.linear_attn.in_proj_ba.weight" not in weights.quantized


def recipe_file(path: Path, *rules: tuple[str, str]) -> str:
    file = path / "mine.toml"
    file.write_text("".join(f'[[rules]]\nmatch = "{match}"\naction = "{action}"\n' for match, action in rules))
    return str(file)


def test_a_recipe_of_ones_own(source: Path, tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, ("model.layers.1.mlp.experts.*", "quantize"), ("*", "keep"))
    done = run("quantize", source, tmp_path / "out", "--scheme", "int4-g32", "--recipe", recipe)
    assert done.exit_code == 0, done.output
    assert {name.split(".")[2] for name in open_weights(tmp_path / "out").quantized} == {"1"}
    assert run("verify", tmp_path / "out", "--against", source).exit_code == 0


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("*.mlp.gate.weight", "the router"),
        ("lm_head.weight", "the output layer"),
        ("*.in_proj_ba.weight", "too few for the engines' kernels"),
        ("model.layers.0.mlp.experts.1.*", "engines load model.layers.0.mlp.experts as one tensor"),
        ("*.shared_expert.up_proj.weight", "engines load .*gate_up_proj as one tensor"),
        ("*norm.weight", "cannot be quantized"),
    ],
)
def test_what_engines_cannot_load_is_refused(pattern: str, message: str, source: Path, tmp_path: Path) -> None:
    recipe = recipe_file(tmp_path, (pattern, "quantize"), ("*", "keep"))
    with pytest.raises(UserError, match=message):
        plan_quantize(source, tmp_path / "out", scheme="int4-g32", recipe=recipe)


def test_shared_expert_unlike_routed_experts_is_warned_of(source: Path, tmp_path: Path) -> None:
    plan = plan_quantize(source, tmp_path / "out", scheme="int4-g32")
    assert any("--disable-shared-experts-fusion" in warning for warning in plan.warnings)
    assert any("--speculative-draft-model-quantization unquant" in warning for warning in plan.warnings)


def test_bad_recipes(source: Path, tmp_path: Path) -> None:
    for recipe, message in (
        ("most", "unknown recipe"),
        (str(tmp_path / "none.toml"), "cannot be read"),
        (recipe_file(tmp_path, ("*", "int8")), "unknown action 'int8'"),
    ):
        with pytest.raises(UserError, match=message):
            plan_quantize(source, tmp_path / "out", scheme="int4-g32", recipe=recipe)


def test_groups_that_do_not_fit(tmp_path: Path) -> None:
    config = tiny_config(num_hidden_layers=1, layer_types=["full_attention"], moe_intermediate_size=96)
    source = write_tiny_checkpoint(tmp_path / "source", config)
    with pytest.raises(UserError, match=r"down_proj.*int4-g64 does not fit a weight with 96 inputs"):
        plan_quantize(source, tmp_path / "out", scheme="int4-g64")

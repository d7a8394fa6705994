"""The family's inventory against published totals of the 80B model, and what it refuses."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from qconvert.engine_config import not_converted
from qconvert.errors import UserError
from qconvert.families import family_names, family_of
from qconvert.formats import get_format
from qconvert.recipe import KEEP, Recipe
from qconvert.schemes import get_scheme
from tests.tiny import tiny_config

CONFIG_80B = json.loads((Path(__file__).parents[1] / "fixtures" / "qwen3_next_80b_config.json").read_text())


def actions(config: dict[str, Any], mtp: bool = True) -> dict[str, str]:
    family = family_of(config)
    recipe = Recipe("default", family.default_rules("fp8-block128"))
    return {name: recipe.action(name) for name in family.inventory(config) if mtp or not name.startswith("mtp.")}


def test_80b_totals() -> None:
    shapes = family_of(CONFIG_80B).inventory(CONFIG_80B)
    assert len(shapes) == 75_944
    assert sum(map(math.prod, shapes.values())) == 81_324_862_720
    trunk = [shape for name, shape in shapes.items() if not name.startswith("mtp.")]
    assert (len(trunk), sum(map(math.prod, trunk))) == (74_391, 79_674_391_296)


def test_80b_in_fp8() -> None:
    family = family_of(CONFIG_80B)
    shapes, decided = family.inventory(CONFIG_80B), actions(CONFIG_80B)
    scheme = get_scheme("fp8-block128")
    quantized = [name for name, action in decided.items() if action != KEEP]
    assert len(quantized) == 75_535
    scales = sum(math.prod(scheme.layout(shapes[name])["scales"][1]) for name in quantized)
    assert scales == 4_921_664
    codes = sum(math.prod(shapes[name]) for name in quantized)
    kept = sum(math.prod(shape) for shape in shapes.values()) - codes
    assert codes + 2 * kept + 2 * scales == 82_023_025_792
    trunk = [name for name in quantized if not name.startswith("mtp.")]
    assert sum(math.prod(scheme.layout(shapes[name])["scales"][1]) for name in trunk) == 4_821_504


def test_80b_list_of_modules_not_converted() -> None:
    """Entry by entry as in the official config: lm_head, layers in order with names by alphabet, then the head."""
    linear = [
        "input_layernorm",
        *(f"linear_attn.{part}" for part in ("A_log", "conv1d", "dt_bias", "in_proj_ba", "norm")),
    ]
    linear += ["mlp.gate", "mlp.shared_expert_gate", "post_attention_layernorm"]
    full = ["input_layernorm", "mlp.gate", "mlp.shared_expert_gate", "post_attention_layernorm"]
    full += ["self_attn.k_norm", "self_attn.q_norm"]
    want = ["lm_head"]
    want += [f"model.layers.{i}.{name}" for i in range(48) for name in (full if i % 4 == 3 else linear)]
    want += ["mtp.fc", *(f"mtp.layers.0.{name}" for name in full)]
    want += ["mtp.norm", "mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden"]
    got = not_converted(family_of(CONFIG_80B), (name for name, action in actions(CONFIG_80B).items() if action == KEEP))
    assert got == want
    assert len(got) == 407
    block = get_format("fp8").config_block(get_scheme("fp8-block128"), got)
    assert block == {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "modules_to_not_convert": want,
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    }


def test_without_head() -> None:
    decided = actions(CONFIG_80B, mtp=False)
    assert sum(action != KEEP for action in decided.values()) == 73_992
    listed = not_converted(family_of(CONFIG_80B), (name for name, action in decided.items() if action == KEEP))
    assert len(listed) == 397


def test_layers_by_type_and_dense_layers() -> None:
    config = tiny_config(mlp_only_layers=[1], layer_types=["full_attention", *["linear_attention"] * 3])
    del config["full_attention_interval"]
    shapes = family_of(config).inventory(config)
    assert shapes["model.layers.0.self_attn.q_proj.weight"] == (2 * 4 * 64, 128)
    assert shapes["model.layers.1.mlp.gate_proj.weight"] == (256, 128)
    assert "model.layers.1.mlp.gate.weight" not in shapes
    assert shapes["model.layers.3.linear_attn.in_proj_qkvz.weight"] == (2 * 64 + 2 * 128, 128)
    assert shapes["model.layers.3.mlp.experts.3.down_proj.weight"] == (128, 128)
    assert "lm_head.weight" not in family_of(config).inventory(config | {"tie_word_embeddings": True})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.3.mlp.experts.17.gate_proj.weight", "experts.gate_proj"),
        ("mtp.layers.0.mlp.experts.0.up_proj.weight", "mtp.experts.up_proj"),
        ("model.layers.47.mlp.gate.weight", "mlp.gate"),
        ("model.layers.0.linear_attn.A_log", "linear_attn.A_log"),
        ("mtp.fc.weight", "mtp.fc"),
        ("model.embed_tokens.weight", "embed_tokens"),
        ("lm_head.weight", "lm_head"),
    ],
)
def test_kind(name: str, kind: str) -> None:
    assert family_of(tiny_config()).kind(name) == kind


def test_fused_groups() -> None:
    group = family_of(tiny_config()).fused_group
    assert group("model.layers.0.mlp.experts.0.up_proj.weight") == group(
        "model.layers.0.mlp.experts.3.down_proj.weight"
    )
    assert group("mtp.layers.0.self_attn.q_proj.weight") == group("mtp.layers.0.self_attn.v_proj.weight")
    assert group("model.layers.1.mlp.gate_proj.weight") == group("model.layers.1.mlp.up_proj.weight")
    assert group("model.layers.0.mlp.gate.weight") is None
    assert group("model.layers.0.self_attn.o_proj.weight") is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "unknown model_type 'llama'"),
        ({"model_type": None}, "unknown model_type None"),
        ({"hidden_size": None}, "hidden_size must be a number"),
        ({"attention_bias": True}, "attention_bias is not supported"),
        ({"full_attention_interval": None}, "neither full_attention_interval nor layer_types"),
        ({"layer_types": ["sliding"] * 4}, "layer_types does not describe the layers"),
    ],
)
def test_refusals(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        family_of(tiny_config(**change))


def test_lost_keys_are_warned_about() -> None:
    config = tiny_config(layer_types=["linear_attention"] * 4)
    assert family_of(config).warnings(config) == []
    del config["rope_theta"], config["full_attention_interval"]
    (warning,) = family_of(config).warnings(config)
    assert "rope_theta, full_attention_interval" in warning


def test_every_family_has_a_module_of_its_name() -> None:
    assert all(family_of(tiny_config(model_type=name)).model_type == name for name in family_names())


def test_places_are_in_the_order_in_which_a_token_meets_them() -> None:
    layers = ("0.mlp.gate", "2.input_layernorm", "10.mlp.experts.3.up_proj")
    names = ["model.embed_tokens.weight", *(f"model.layers.{rest}.weight" for rest in layers), "model.norm.weight"]
    names.append("mtp.layers.0.mlp.gate.weight")
    family = family_of(tiny_config())
    places = [family.place(name) for name in names]
    assert places == sorted(places) and len({rank for rank, _ in places}) == 6
    assert [word for _, word in places] == ["embedding", "layer 0", "layer 2", "layer 10", "output", "head"]
    assert family.place("lm_head.weight") == family.place("model.norm.weight")
    assert family.place("mtp.fc.weight") == family.place("mtp.norm.weight")

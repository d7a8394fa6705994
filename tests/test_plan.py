"""Plans: what they contain, that they depend on nothing but source and recipe, and everything they refuse."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qconvert.checkpoint import CONFIG, INDEX, TensorSpec, save_safetensors, write_checkpoint
from qconvert.errors import UserError
from qconvert.families import family_of
from qconvert.plan import PLAIN, TensorJob, assign_shards
from qconvert.quantize_plan import plan_quantize
from qconvert.recipe import KEEP, Recipe, Rule
from tests.tiny import tiny_config, tiny_tensors, write_tiny_checkpoint


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("plan") / "source")


def tensor_job(name: str, size: int) -> TensorJob:
    return TensorJob(name, KEEP, None, {PLAIN: name}, {PLAIN: TensorSpec(name, "I8", (size,))})


def test_shards_are_filled_in_order() -> None:
    jobs = assign_shards([tensor_job(name, size) for name, size in zip("abcdef", (4, 4, 4, 20, 1, 9), strict=True)], 10)
    assert [[tensor.name for tensor in job.tensors] for job in jobs] == [["a", "b"], ["c"], ["d"], ["e", "f"]]
    assert [job.file for job in jobs] == [f"model-{number:05d}-of-00004.safetensors" for number in range(1, 5)]
    assert assign_shards([tensor_job("a", 4)], 10)[0].file == "model.safetensors"


def test_recipe_takes_the_first_rule_that_matches() -> None:
    recipe = Recipe("mine", (Rule("*.gate.weight", KEEP), Rule("*.weight", "fp8-block128")))
    assert recipe.action("model.layers.0.mlp.gate.weight") == KEEP
    assert recipe.action("model.layers.0.mlp.up_proj.weight") == "fp8-block128"
    with pytest.raises(UserError, match=r"tensor a\.bias is not covered by the recipe 'mine'"):
        recipe.action("a.bias")


def test_plan_describes_the_output(source: Path, tmp_path: Path) -> None:
    plan = plan_quantize(source, tmp_path / "out", max_shard_size=300_000)
    family = family_of(tiny_config())
    assert plan.counts["tensors_in"] == len(family.inventory(tiny_config()))
    assert plan.counts["tensors_out"] == plan.counts["tensors_in"] + plan.counts["quantized"]
    assert plan.counts["kept"] + plan.counts["quantized"] == plan.counts["tensors_in"]
    assert plan.counts["shards"] == len(plan.jobs) > 2
    assert all(job.nbytes <= 300_000 for job in plan.jobs)
    assert plan.copies == ("LICENSE", "generation_config.json")
    assert json.loads(json.dumps(plan.to_json()))["counts"] == plan.counts
    listed = json.loads(plan.config_text)["quantization_config"]["modules_to_not_convert"]
    assert len(listed) == plan.counts["kept"] - 2  # embeddings and the last norm are not listed
    for job in plan.jobs:
        names = [spec.name for spec in job.specs]
        assert all(name.removesuffix("_scale_inv") in names for name in names)


def test_fingerprint_depends_on_source_and_recipe_only(source: Path, tmp_path: Path) -> None:
    base = plan_quantize(source, tmp_path / "a").fingerprint
    assert plan_quantize(source, tmp_path / "b").fingerprint == base
    assert plan_quantize(source, tmp_path / "a", scales="f32").fingerprint != base
    assert plan_quantize(source, tmp_path / "a", max_shard_size=100_000).fingerprint != base
    other = write_tiny_checkpoint(tmp_path / "other", seed=1)
    assert plan_quantize(other, tmp_path / "a").fingerprint != base


def test_missing_head_is_noted(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "source", mtp=False)
    plan = plan_quantize(source, tmp_path / "out")
    assert any("no multi-token-prediction head" in note for note in plan.notes)
    assert "mtp" not in plan.config_text


def test_config_saved_by_transformers_5_is_converted_with_a_warning(tmp_path: Path) -> None:
    config = tiny_config(layer_types=["linear_attention"] * 3 + ["full_attention"], rope_parameters={"rope_theta": 1e7})
    del config["rope_theta"], config["full_attention_interval"]
    plan = plan_quantize(write_tiny_checkpoint(tmp_path / "source", config), tmp_path / "out")
    assert any("rope_theta" in warning for warning in plan.warnings)


def test_null_quantization_config_makes_room(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "source", tiny_config(quantization_config=None))
    assert json.loads(plan_quantize(source, tmp_path / "out").config_text)["quantization_config"]["fmt"] == "e4m3"


def set_config(root: Path, **changes: Any) -> None:
    (root / CONFIG).write_text(json.dumps(json.loads((root / CONFIG).read_text()) | changes))


def rewrite(root: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = tiny_tensors(tiny_config())
    change(tensors)
    for shard in root.glob("*.safetensors"):
        shard.unlink()
    (root / INDEX).unlink()
    write_checkpoint(root, tiny_config(), tensors)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: set_config(root, model_type="qwen2"), "unknown model_type 'qwen2'"),
        (
            lambda root: set_config(root, quantization_config={"quant_method": "awq"}),
            "quantized already: quant_method 'awq'",
        ),
        (
            lambda root: set_config(root, num_hidden_layers=5),
            r"tensor model\.layers\.4\.input_layernorm\.weight is missing",
        ),
        (lambda root: set_config(root, vocab_size=17), r"model\.embed_tokens\.weight does not have the shape"),
        (
            lambda root: rewrite(root, lambda tensors: tensors.pop("model.layers.0.linear_attn.A_log")),
            r"tensor model\.layers\.0\.linear_attn\.A_log is missing",
        ),
        (
            lambda root: rewrite(root, lambda tensors: tensors.pop("mtp.layers.0.mlp.experts.2.up_proj.weight")),
            r"tensor mtp\.layers\.0\.mlp\.experts\.2\.up_proj\.weight is missing",
        ),
        (
            lambda root: rewrite(root, lambda tensors: tensors.update({"model.layers.0.lora_A": torch.zeros(2)})),
            r"tensor model\.layers\.0\.lora_A is not covered by the recipe 'default'",
        ),
        (
            lambda root: rewrite(root, lambda tensors: tensors.update({"mtp.fc.weight": torch.zeros(128, 256).int()})),
            None,  # kept as it is, whatever its type
        ),
        (
            lambda root: rewrite(
                root, lambda t: t.update({"model.layers.3.self_attn.q_proj.weight": torch.zeros(512, 128).int()})
            ),
            r"model\.layers\.3\.self_attn\.q_proj\.weight cannot be quantized",
        ),
    ],
)
def test_refusals(tmp_path: Path, damage: Callable[[Path], object], message: str | None) -> None:
    root = write_tiny_checkpoint(tmp_path / "source")
    damage(root)
    if message is None:
        assert plan_quantize(root, tmp_path / "out").counts["quantized"] > 0
        return
    with pytest.raises(UserError, match=message):
        plan_quantize(root, tmp_path / "out")


def test_tensors_beyond_the_inventory_are_noted_if_a_rule_covers_them(tmp_path: Path) -> None:
    root = write_tiny_checkpoint(tmp_path / "source")
    (root / INDEX).unlink()
    save_safetensors(root / "more.safetensors", {"model.layers.9.input_layernorm.weight": torch.zeros(128)})
    plan = plan_quantize(root, tmp_path / "out")
    assert any("model.layers.9.input_layernorm.weight" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("*.self_attn.k_proj.weight", "qkv_proj"),
        ("*.mlp.experts.2.up_proj.weight", r"mlp\.experts"),
        ("*.mlp.shared_expert.up_proj.weight", "gate_up_proj"),
    ],
)
def test_parts_of_merged_tensors_must_agree(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, message: str
) -> None:
    family = type(family_of(tiny_config()))
    rules = family_of(tiny_config()).default_rules("fp8-block128")
    monkeypatch.setattr(family, "default_rules", lambda self, scheme: (Rule(pattern, KEEP), *rules))
    with pytest.raises(UserError, match=f"engines load .*{message} as one tensor"):
        plan_quantize(source, tmp_path / "out")


def test_destination(source: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "taken")
    for destination, message in [
        (tmp_path / "taken", "taken exists"),
        (source, "the destination is the source"),
        (source / "out", "the destination is inside the source"),
        (source / ".." / "source" / "out", "the destination is inside the source"),
        (source.parent, "the destination contains the source"),
        (tmp_path / "no" / "out", "no such folder"),
    ]:
        with pytest.raises(UserError, match=message):
            plan_quantize(source, destination)
    plan_quantize(source, tmp_path / "taken", overwrite=True)
    (tmp_path / "taken" / "thesis.doc").write_text("x")
    for destination in (tmp_path / "taken", tmp_path / "link"):
        with pytest.raises(UserError, match="is not a checkpoint, so it is not overwritten"):
            plan_quantize(source, destination, overwrite=True)

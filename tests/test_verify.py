"""`verify` on sound folders: ours and foreign, quantized and plain, with and without head; and what it names."""

import json
from pathlib import Path

import pytest
import torch

from qconvert.checkpoint import MANIFEST, load_safetensors, save_safetensors, write_checkpoint
from qconvert.errors import UserError
from qconvert.quantization import dequantize, quantize
from qconvert.verification import VerifyReport, verify
from tests.tiny import tiny_config, tiny_tensors, write_tiny_checkpoint

QKVZ = "model.layers.0.linear_attn.in_proj_qkvz.weight"


def failed(report: VerifyReport) -> dict[str, str]:
    return {check.name: check.detail for check in report.checks if not check.ok}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "source")


@pytest.mark.parametrize("scales", ["bf16", "f32", "pow2"])
@pytest.mark.parametrize("manifest", [True, False])
def test_all_types_of_scales(source: Path, tmp_path: Path, scales: str, manifest: bool) -> None:
    quantize(source, tmp_path / "fp8", scales=scales)
    if not manifest:
        (tmp_path / "fp8" / MANIFEST).unlink()
    assert failed(verify(tmp_path / "fp8")) == {}
    assert failed(verify(tmp_path / "fp8", source)) == {}


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(moe_intermediate_size=96, shared_expert_intermediate_size=200),
        tiny_config(mlp_only_layers=[1], tie_word_embeddings=True),
        tiny_config(num_experts=0),
    ],
    ids=["partial-blocks", "dense-layer-and-tied-embeddings", "no-experts"],
)
def test_other_shapes(tmp_path: Path, config: dict[str, object]) -> None:
    source = write_tiny_checkpoint(tmp_path / "source", config)
    quantize(source, tmp_path / "fp8")
    assert failed(verify(tmp_path / "fp8", source)) == {}


def test_checkpoint_without_head(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "source", mtp=False)
    quantize(source, tmp_path / "fp8")
    report = verify(tmp_path / "fp8", source)
    assert failed(report) == {}
    assert "without a multi-token-prediction head" in report.checks[0].detail


def test_zero_weights_are_no_damage(tmp_path: Path) -> None:
    tensors = tiny_tensors(tiny_config())
    tensors["model.layers.0.mlp.experts.0.up_proj.weight"].zero_()
    tensors[QKVZ][:128] = 0
    source = write_checkpoint(tmp_path / "source", tiny_config(), tensors)
    quantize(source, tmp_path / "fp8")
    (tmp_path / "fp8" / MANIFEST).unlink()
    assert failed(verify(tmp_path / "fp8", source)) == {}


def test_plain_folder(source: Path) -> None:
    report = verify(source)
    assert failed(report) == {}
    assert any("manifest" in name for name in report.skipped)
    assert report.tensors == 135


def test_dequantized_folder_against_the_quantized_one(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "fp8")
    dequantize(tmp_path / "fp8", tmp_path / "bf16")
    assert failed(verify(tmp_path / "bf16", tmp_path / "fp8")) == {}
    assert "kept" in failed(verify(tmp_path / "bf16", source))  # rounding has changed the weights, and verify says so


def test_foreign_folder_that_rounded_its_scales_last(source: Path, tmp_path: Path) -> None:
    """Codes chosen with unrounded scales, the other order of rounding that tools use, and no manifest."""
    target = tmp_path / "fp8"
    quantize(source, target)
    (target / MANIFEST).unlink()
    originals = {}
    for shard in source.glob("*.safetensors"):
        originals |= load_safetensors(shard)
    stored = load_safetensors(target / "model.safetensors")
    for name in [name for name in stored if name.endswith("_scale_inv")]:
        weight = originals[name.removesuffix("_scale_inv")].float()
        rows, columns = stored[name].shape
        blocks = weight.view(rows, 128, columns, 128)
        scales = blocks.abs().amax((1, 3)) / 448
        codes = (blocks / scales[:, None, :, None]).clamp(-448, 448).view_as(weight)
        stored[name.removesuffix("_scale_inv")] = codes.to(torch.float8_e4m3fn)
        stored[name] = scales.bfloat16()
    save_safetensors(target / "model.safetensors", stored)
    assert failed(verify(target)) == {}
    assert failed(verify(target, source)) == {}


def test_changed_copy_and_config_are_named(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "fp8"
    quantize(source, target)
    (target / "generation_config.json").write_text("{}")
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"rope_theta": 10000}))
    problems = failed(verify(target, source))
    assert problems.keys() == {"config", "copies", "manifest"}
    assert "rope_theta: 10000, in the source 10000000" in problems["config"]
    assert "generation_config.json" in problems["copies"]


def test_wrong_shapes_and_types_are_named(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "fp8"
    quantize(source, target)
    (target / MANIFEST).unlink()
    stored = load_safetensors(target / "model.safetensors")
    stored[QKVZ] = stored[QKVZ][:256].clone()
    stored["model.norm.weight"] = stored["model.norm.weight"].to(torch.int32)
    stored["model.layers.0.mlp.experts.9.up_proj.weight"] = torch.zeros(2, 2)
    stored["surprise"] = torch.zeros(2)
    del stored["lm_head.weight"]
    save_safetensors(target / "model.safetensors", stored)
    problems = failed(verify(target))
    assert f"{QKVZ}: shape [256, 128], expected [384, 128]" in problems["shapes"]
    assert "model.norm.weight: type I32" in problems["shapes"]
    assert "lm_head.weight: missing" in problems["names"]
    assert "surprise: not a tensor of this model" in problems["names"]


def test_index_with_a_wrong_total(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "fp8"
    quantize(source, target, max_shard_size=10**6)
    path = target / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["metadata"]["total_size"] += 2
    path.write_text(json.dumps(index))
    assert failed(verify(target)).keys() == {"index", "manifest"}


def test_only_the_first_failures_are_named_but_all_are_counted(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "fp8"
    quantize(source, target)
    stored = load_safetensors(target / "model.safetensors")
    for name in [name for name in stored if name.endswith("norm.weight")]:
        stored[name] += 1
    save_safetensors(target / "model.safetensors", stored)
    kept = next(check for check in verify(target, source).checks if check.name == "kept")
    assert kept.failures > len(kept.tensors) == 10
    assert kept.detail.endswith("more")


@pytest.mark.parametrize("manifest", [True, False])
def test_the_same_report_for_any_number_of_workers(source: Path, tmp_path: Path, manifest: bool) -> None:
    """Damage in many tensors, files and kinds, more than a check names."""
    target = tmp_path / "fp8"
    quantize(source, target, max_shard_size=10**6)
    for path in target.glob("*.safetensors"):
        stored = load_safetensors(path)
        for name, tensor in stored.items():
            if name.endswith("norm.weight"):
                tensor[3] = float("nan")
            elif name.endswith("up_proj.weight_scale_inv"):
                tensor[0] *= -1
            elif name.endswith("down_proj.weight_scale_inv"):
                tensor[0] *= 2
            elif name.endswith("gate.weight"):
                tensor += 1
        save_safetensors(path, stored)
    if not manifest:
        (target / MANIFEST).unlink()
    alone = verify(target, source, workers=1)
    assert failed(alone).keys() >= {"values", "kept", "bounds"} | ({"manifest"} if manifest else set())
    assert verify(target, source, workers=2) == verify(target, source, workers=5) == alone


def test_no_workers(source: Path) -> None:
    with pytest.raises(UserError, match="at least one worker"):
        verify(source, workers=0)


def test_progress_reaches_the_end(source: Path) -> None:
    seen: list[tuple[int, int]] = []
    verify(source, progress=lambda done, total, what: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)

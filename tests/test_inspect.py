"""`inspect`: the published numbers of the 80B model from its config, the sizes of real files, and the warnings."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from qconvert.checkpoint import load_safetensors, save_safetensors, write_checkpoint
from qconvert.cli import main
from qconvert.inspection import InspectReport, inspect
from qconvert.quantization import quantize
from tests.tiny import tiny_config, tiny_tensors, write_tiny_checkpoint

FIXTURE = Path(__file__).parent / "fixtures" / "qwen3_next_80b_config.json"


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("80b")
    shutil.copy(FIXTURE, folder / "config.json")
    return folder


@pytest.fixture(scope="module")
def big_report(big: Path) -> InspectReport:
    return inspect(big)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("inspect") / "source")


def warnings_of(report: InspectReport) -> str:
    return "\n".join(f"{warning.engine}: {warning.text}" for warning in report.warnings)


def test_the_80b_model_from_its_config_alone(big_report: InspectReport) -> None:
    assert big_report.metadata == "config"
    assert (big_report.now.parameters, big_report.now.tensors) == (81_324_862_720, 75_944)
    assert big_report.now.bytes == 162_649_725_440
    fp8 = big_report.schemes["fp8-block128"]
    assert (fp8.parameters, fp8.tensors, fp8.bytes) == (81_324_862_720, 151_479, 82_023_025_792)


def test_kinds_of_the_80b_model(big_report: InspectReport) -> None:
    kinds = {kind.name: kind for kind in big_report.kinds}
    experts = kinds["experts.gate_proj"]
    assert (experts.tensors, experts.shapes, experts.parameters) == (24_576, ((512, 2048),), 25_769_803_776)
    assert (experts.bytes, experts.schemes["fp8-block128"]) == (51_539_607_552, 25_772_949_504)
    router = kinds["mlp.gate"]
    assert router.bytes == router.schemes["fp8-block128"] == 100_663_296
    assert sum(kind.tensors for kind in big_report.kinds if kind.name.startswith("mtp.")) == 1_553


def test_memory_to_serve_the_80b_model(big_report: InspectReport) -> None:
    cache = big_report.cache
    assert cache.bytes_per_token == 12 * 2 * 2 * 256 * 2  # layers, keys and values, heads, width, bytes
    assert cache.bytes_per_sequence == 36 * (32 * 128 * 128 * 4 + 8192 * 3 * 2)  # state in FP32, three inputs in BF16
    assert cache.longest == 262_144


def test_what_is_printed_for_the_80b_model(big: Path) -> None:
    output = CliRunner().invoke(main, ["inspect", str(big)]).stdout
    for number in ("81,324,862,720", "75,944", "162,649,725,440", "82,023,025,792", "151,479"):
        assert number in output
    assert "tensor-parallel sizes that give whole blocks of 128: 1, 2, 4 (" in output
    assert "(mtp.*): assumed to be there" in output


@pytest.mark.parametrize("scales", ["bf16", "f32", "pow2"])
def test_sizes_are_those_of_real_files(source: Path, tmp_path: Path, scales: str) -> None:
    before = inspect(source)
    quantize(source, tmp_path / "fp8", scales=scales)
    after = inspect(tmp_path / "fp8")
    assert after.format == "fp8-block128 + BF16"
    assert after.now.parameters == before.now.parameters
    planned = before.schemes["fp8-block128"]  # with scales of two bytes
    stored = load_safetensors(tmp_path / "fp8" / "model.safetensors")
    blocks = sum(tensor.numel() for name, tensor in stored.items() if name.endswith("_scale_inv"))
    wider = 2 * blocks if scales == "f32" else 0
    assert (after.now.tensors, after.now.bytes) == (planned.tensors, planned.bytes + wider)


def test_kinds_add_up_to_the_totals(source: Path) -> None:
    report = inspect(source)
    assert sum(kind.bytes for kind in report.kinds) == report.now.bytes
    assert sum(kind.parameters for kind in report.kinds) == report.now.parameters
    assert sum(kind.schemes["fp8-block128"] for kind in report.kinds) == report.schemes["fp8-block128"].bytes


def test_a_clean_folder_has_no_defect(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "fp8", scales="pow2")
    text = warnings_of(inspect(tmp_path / "fp8"))
    assert "qconvert verify" not in text
    assert "powers of two" not in text
    assert "save_pretrained writes a folder without the prediction head" in text


def test_scales_that_engines_will_round(source: Path, tmp_path: Path) -> None:
    assert "quantized to fp8-block128: on Hopper" in warnings_of(inspect(source))
    quantize(source, tmp_path / "fp8")
    assert "SGLang: on Hopper" in warnings_of(inspect(tmp_path / "fp8"))


def test_missing_head(tmp_path: Path) -> None:
    report = inspect(write_tiny_checkpoint(tmp_path / "source", mtp=False))
    assert "no mtp.* tensors" in warnings_of(report)
    assert "save_pretrained" not in warnings_of(report)
    assert not [kind for kind in report.kinds if kind.name.startswith("mtp.")]
    quantize(tmp_path / "source", tmp_path / "fp8")
    assert "the head's layer" not in warnings_of(inspect(tmp_path / "fp8"))


def test_config_that_transformers_saved(tmp_path: Path) -> None:
    config = tiny_config(layer_types=["linear_attention"] * 3 + ["full_attention"])
    del config["rope_theta"], config["full_attention_interval"]
    text = warnings_of(inspect(write_tiny_checkpoint(tmp_path / "source", config)))
    assert "rope_theta" in text and "full_attention_interval" in text


def test_partial_blocks(tmp_path: Path) -> None:
    text = warnings_of(inspect(write_tiny_checkpoint(tmp_path / "source", tiny_config(moe_intermediate_size=192))))
    assert "partial blocks" in text and "192" in text
    assert "whole blocks of 128: none" in text


def test_shards_without_index(source: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(source, tmp_path / "source"))
    assert "finds no weights" not in warnings_of(inspect(folder))
    (folder / "model.safetensors.index.json").unlink()
    assert "transformers: finds no weights" in warnings_of(inspect(folder))


def test_skip_list_that_does_not_match(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "fp8")
    path = tmp_path / "fp8" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["modules_to_not_convert"].append("language_model.model.layers.0.mlp.gate")
    path.write_text(json.dumps(config))
    assert (
        "language_model.model.layers.0.mlp.gate: listed as not converted, but there is no such module"
        in warnings_of(inspect(tmp_path / "fp8"))
    )


def keep_in_full_precision(folder: Path, part_of_name: str, tensors: dict[str, torch.Tensor]) -> None:
    """Put weights of the source back into a converted folder and list them."""
    stored = load_safetensors(folder / "model.safetensors")
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    for name in [name for name in tensors if part_of_name in name and name + "_scale_inv" in stored]:
        del stored[name + "_scale_inv"]
        stored[name] = tensors[name]
        config["quantization_config"]["modules_to_not_convert"].append(name.removesuffix(".weight"))
    save_safetensors(folder / "model.safetensors", stored)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("part", "text"),
    [(".shared_expert.", "--disable-shared-experts-fusion"), ("mtp.layers.", "builds it like model.layers.0")],
    ids=["shared-expert", "head"],
)
def test_precisions_that_sglang_cannot_serve(tmp_path: Path, part: str, text: str) -> None:
    tensors = tiny_tensors(tiny_config())
    write_checkpoint(tmp_path / "source", tiny_config(), tensors)
    quantize(tmp_path / "source", tmp_path / "fp8")
    assert text not in warnings_of(inspect(tmp_path / "fp8"))
    keep_in_full_precision(tmp_path / "fp8", part, tensors)
    assert text in warnings_of(inspect(tmp_path / "fp8"))

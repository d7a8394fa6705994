"""INT4 folders from end to end: every format is written, verified, read, converted and shown."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from qconvert.checkpoint import MANIFEST, TENSOR_REPORT, load_safetensors
from qconvert.errors import UserError
from qconvert.formats import format_of, open_weights
from qconvert.quantization import convert, dequantize, plan_convert, quantize
from qconvert.schemes import QuantizedWeight, get_scheme
from tests.int4.folders import EXPERT, FORMATS, damage, run


def test_the_round_trip_ends_in_identical_bytes(folders: dict[str, Path]) -> None:
    first, last = folders["compressed-tensors"], folders["back"]
    apart = (MANIFEST, TENSOR_REPORT)  # who made it and how, which `convert` does not know
    names = sorted(path.name for path in first.iterdir() if path.name not in apart)
    assert names == sorted(path.name for path in last.iterdir() if path.name != MANIFEST)
    for name in names:
        assert (first / name).read_bytes() == (last / name).read_bytes(), name


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_verifies_against_the_source(name: str, folders: dict[str, Path], source: Path) -> None:
    done = run("verify", folders[name], "--against", source)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_holds_the_same_numbers(name: str, folders: dict[str, Path], source: Path) -> None:
    weights, original = open_weights(folders[name]), open_weights(source)
    assert weights.format is not None and weights.format.name == name
    assert weights.names == original.names
    experts = {name for name in original.names if ".experts." in name and not name.startswith("mtp.")}
    assert weights.quantized.keys() == experts
    for weight in original.names:
        loaded, plain = weights.load(weight), original.load(weight)
        assert isinstance(plain, Tensor)
        if isinstance(loaded, Tensor):
            assert torch.equal(loaded, plain)
            continue
        want = get_scheme("int4-g64").quantize(plain)
        assert torch.equal(loaded.codes, want.codes) and torch.equal(loaded.scales, want.scales)
        assert loaded.zeros is None


def test_direct_and_converted_folders_are_equal(folders: dict[str, Path], source: Path, tmp_path: Path) -> None:
    """Quantizing into a format and converting into it is the same."""
    for name in FORMATS[1:]:
        quantize(source, tmp_path / name, scheme="int4-g64", file_format=name)
        for file in ("config.json", "model.safetensors"):
            assert (tmp_path / name / file).read_bytes() == (folders[name] / file).read_bytes(), (name, file)


@pytest.mark.parametrize("name", FORMATS)
def test_dequantize_inverts_every_format(name: str, folders: dict[str, Path], source: Path, tmp_path: Path) -> None:
    dequantize(folders[name], tmp_path / "back")
    weights, plain = open_weights(folders[name]), open_weights(tmp_path / "back")
    for weight in weights.names:
        loaded = weights.load(weight)
        want = loaded.dequantize() if isinstance(loaded, QuantizedWeight) else loaded
        assert torch.equal(torch.as_tensor(plain.load(weight)), want)
    assert format_of(plain.config) is None


def test_exclusions_are_those_that_engines_need(folders: dict[str, Path]) -> None:
    """The head, the router and all else in full precision by patterns; merged modules under the engines' names, too."""
    modules = {
        "kept": [
            "lm_head", "mtp.fc", "mtp.layers.0.mlp.experts", "mtp.layers.0.mlp.experts.1.up_proj",
            "model.layers.1.self_attn.qkv_proj", "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.gate",
            "model.layers.0.linear_attn.in_proj_qkvz", "model.layers.0.mlp.shared_expert.gate_up_proj",
            "model.layers.0.mlp.shared_expert_gate",
        ],
        "converted": ["model.layers.0.mlp.experts", "model.layers.0.mlp.experts.0.gate_proj"],
    }  # fmt: skip
    for name in FORMATS:
        config = json.loads((folders[name] / "config.json").read_text())
        file_format = format_of(config)
        assert file_format is not None
        block = config["quantization_config"]
        covered = set().union(*file_format.excluded(block, modules["kept"] + modules["converted"]).values())
        assert covered == set(modules["kept"]), name


def fp8_pair(source: Path, tmp_path: Path) -> tuple[Path, Path]:
    quantize(source, tmp_path / "fp8")
    convert(tmp_path / "fp8", tmp_path / "ct", file_format="compressed-tensors")
    return tmp_path / "fp8", tmp_path / "ct"


def test_fp8_to_compressed_tensors_and_back(source: Path, tmp_path: Path) -> None:
    first, other = fp8_pair(source, tmp_path)
    assert run("verify", other, "--against", source).exit_code == 0
    convert(other, tmp_path / "back", file_format="fp8")
    for name in ("config.json", "model.safetensors"):
        assert (first / name).read_bytes() == (tmp_path / "back" / name).read_bytes()


def test_asymmetric_numbers_survive_awq(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "ct", scheme="int4-g32", asymmetric=True)
    assert run("verify", tmp_path / "ct", "--against", source).exit_code == 0
    convert(tmp_path / "ct", tmp_path / "awq", file_format="awq")
    assert run("verify", tmp_path / "awq", "--against", source).exit_code == 0
    convert(tmp_path / "awq", tmp_path / "back", file_format="compressed-tensors")
    assert (tmp_path / "ct" / "model.safetensors").read_bytes() == (tmp_path / "back/model.safetensors").read_bytes()


def test_convert_refuses_by_name(folders: dict[str, Path], source: Path, tmp_path: Path) -> None:
    def damaged(name: str, part: str, change: Callable[[Tensor], object]) -> Path:
        target = Path(shutil.copytree(folders[name], tmp_path / f"{name}-{part}"))
        damage(target, lambda tensors: change(tensors[f"{EXPERT}.{part}"]))
        return target

    for folder, name, message in (
        (source, "gptq", "is not quantized"),
        (folders["gptq"], "gptq", "in the format gptq already"),
        (folders["gptq"], "fp8", "the format fp8 cannot hold int4-g64"),
        (damaged("gptq", "g_idx", lambda g_idx: g_idx.copy_(g_idx.flip(0))), "awq", "groups are not in order"),
    ):
        with pytest.raises(UserError, match=message):
            plan_convert(folder, tmp_path / "out", file_format=name)
    quantize(source, tmp_path / "asymmetric", scheme="int4-g32", asymmetric=True)
    damage(tmp_path / "asymmetric", lambda tensors: tensors[f"{EXPERT}.weight_zero_point"].zero_())
    with pytest.raises(UserError, match=r"experts.*cannot be stored as gptq: a zero point of 0 has no place"):
        plan_convert(tmp_path / "asymmetric", tmp_path / "out", file_format="gptq")


@pytest.mark.parametrize("name", FORMATS)
def test_inspect(name: str, folders: dict[str, Path]) -> None:
    report = json.loads(run("inspect", folders[name], "--json").output)
    assert report["format"] == "int4-g64 + BF16"
    assert report["now"]["bytes"] == sum(
        tensor.nbytes for tensor in load_safetensors(folders[name] / "model.safetensors").values()
    )
    warnings = "\n".join(warning["text"] for warning in report["warnings"])
    assert "tensor-parallel sizes that give whole groups of 64: 1, 2 (moe_intermediate_size 128)" in warnings


def test_inspect_tells_the_bytes_of_the_80b_model(tmp_path: Path) -> None:
    """47,893,568,000 bytes of weights and scales by the published arithmetic, and 16 bytes for each weight_shape."""
    shutil.copyfile(Path(__file__).parents[1] / "fixtures" / "qwen3_next_80b_config.json", tmp_path / "config.json")
    report = json.loads(run("inspect", tmp_path, "--json").output)
    assert report["schemes"]["int4-g128"]["bytes"] == 47_893_568_000 + 16 * 3 * 512 * 48

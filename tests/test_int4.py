"""INT4 folders from end to end on a tiny checkpoint: every format is written, verified, read, converted and shown."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from qconvert.checkpoint import MANIFEST, load_safetensors, save_safetensors
from qconvert.cli import main
from qconvert.errors import UserError
from qconvert.formats import awq, format_of, gptq, open_weights
from qconvert.quantization import convert, dequantize, plan_quantize, quantize
from qconvert.schemes import QuantizedWeight, get_scheme
from tests.tiny import tiny_config, write_tiny_checkpoint

FORMATS = ["compressed-tensors", "gptq", "awq", "auto-round"]
EXPERT = "model.layers.1.mlp.experts.1.up_proj"
DOWN = "model.layers.1.mlp.experts.0.down_proj"
CONFIG = tiny_config(num_hidden_layers=2, layer_types=["linear_attention", "full_attention"], num_experts=2)

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("int4") / "source", CONFIG)


@pytest.fixture(scope="module")
def folders(source: Path) -> dict[str, Path]:
    """One folder for each format, each converted from the one before; the last one is back at compressed-tensors."""
    found = {"compressed-tensors": source.parent / "compressed-tensors"}
    quantize(source, found["compressed-tensors"], scheme="int4-g64")
    for before, name in zip(FORMATS, [*FORMATS[1:], "back"], strict=True):
        found[name] = source.parent / name
        convert(found[before], found[name], file_format="compressed-tensors" if name == "back" else name)
    return found


def run(*arguments: object) -> Result:
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done


def test_the_round_trip_ends_in_identical_bytes(folders: dict[str, Path]) -> None:
    first, last = folders["compressed-tensors"], folders["back"]
    names = sorted(path.name for path in first.iterdir() if path.name != MANIFEST)
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
            convert(folder, tmp_path / "out", file_format=name)
    quantize(source, tmp_path / "asymmetric", scheme="int4-g32", asymmetric=True)
    damage(tmp_path / "asymmetric", lambda tensors: tensors[f"{EXPERT}.weight_zero_point"].zero_())
    with pytest.raises(UserError, match=r"experts.*cannot be stored as gptq: a zero point of 0 has no place"):
        convert(tmp_path / "asymmetric", tmp_path / "out", file_format="gptq")


# Faults


def damage(folder: Path, change: Callable[[Tensors], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_safetensors(path)
    change(tensors)
    save_safetensors(path, tensors)


def swap_nibbles(tensors: Tensors) -> None:
    packed = tensors[f"{EXPERT}.weight_packed"].view(torch.uint8)
    packed.copy_((packed << 4) | (packed >> 4))


def shift_groups(tensors: Tensors) -> None:
    scales = tensors[f"{EXPERT}.weight_scale"]
    scales.copy_(scales.roll(1, 1))


def transpose_scales(tensors: Tensors) -> None:
    name = f"{EXPERT}.weight_scale"
    tensors[name] = tensors[name].T.contiguous()


def transpose_the_order_of_scales(tensors: Tensors) -> None:
    """The right shape with the bytes of the transpose."""
    scales = tensors[f"{EXPERT}.weight_scale"]
    scales.copy_(scales.T.contiguous().view(scales.shape))


@pytest.mark.parametrize("keep_manifest", [True, False])
@pytest.mark.parametrize(
    "fault", [swap_nibbles, shift_groups, transpose_scales, transpose_the_order_of_scales], ids=lambda f: f.__name__
)
def test_fault_is_found(
    fault: Callable[[Tensors], None], keep_manifest: bool, folders: dict[str, Path], source: Path, tmp_path: Path
) -> None:
    target = Path(shutil.copytree(folders["compressed-tensors"], tmp_path / "damaged"))
    if not keep_manifest:
        (target / MANIFEST).unlink()
    damage(target, fault)
    done = run("verify", target, "--against", source)
    assert done.exit_code == 1
    assert [line for line in done.output.splitlines() if line.strip().startswith(EXPERT)], done.output


@pytest.mark.parametrize("name", ["gptq", "auto-round", "awq"])
def test_zero_points_off_by_one_are_found(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    """What a mix-up of GPTQ's versions 1 and 2 makes."""
    target = Path(shutil.copytree(folders[name], tmp_path / "damaged"))
    (target / MANIFEST).unlink()
    wrong = 0x77 if name == "awq" else 0x88
    damage(target, lambda tensors: tensors[f"{EXPERT}.qzeros"].view(torch.uint8).fill_(wrong))
    done = run("verify", target)
    assert done.exit_code == 1
    assert f"{EXPERT}.weight cannot be read: zero points are off by" in done.output
    with pytest.raises(UserError, match="zero points are off"):
        open_weights(target).load(f"{EXPERT}.weight")


def test_asymmetric_zero_points_off_by_one_are_found(source: Path, tmp_path: Path) -> None:
    quantize(source, tmp_path / "awq", scheme="int4-g64", asymmetric=True, file_format="awq")
    (tmp_path / "awq" / MANIFEST).unlink()

    def minus_one(tensors: Tensors) -> None:
        zeros = tensors[f"{DOWN}.qzeros"].view(torch.uint8)
        zeros.sub_(0x11 * ((zeros & 15 > 0) & (zeros >> 4 > 0)).to(torch.uint8))

    damage(tmp_path / "awq", minus_one)
    done = run("verify", tmp_path / "awq", "--against", source)
    assert done.exit_code == 1
    assert f"{DOWN}.weight: " in done.output


@pytest.mark.parametrize("name", FORMATS)
def test_head_that_is_not_excluded_is_found(name: str, folders: dict[str, Path], tmp_path: Path) -> None:
    target = Path(shutil.copytree(folders[name], tmp_path / "damaged"))
    config = json.loads((target / "config.json").read_text())
    block = config["quantization_config"]
    key = {"compressed-tensors": "ignore", "gptq": "dynamic", "awq": "modules_to_not_convert"}.get(name, "extra_config")
    entries = block[key]
    kept = [entry for entry in entries if "mtp" not in entry]
    assert len(kept) < len(entries)
    block[key] = {entry: entries[entry] for entry in kept} if isinstance(entries, dict) else kept
    (target / "config.json").write_text(json.dumps(config))
    done = run("verify", target)
    assert done.exit_code == 1
    assert "mtp.layers.0.mlp.experts.0.gate_proj: in full precision, but not listed" in done.output or (
        "mtp." in done.output and "not listed" in done.output
    )


# Recipes and the command line


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
        ("mixed", "unknown recipe"),
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


@pytest.mark.parametrize("name", FORMATS)
def test_inspect(name: str, folders: dict[str, Path]) -> None:
    report = json.loads(run("inspect", folders[name], "--json").output)
    assert report["format"] == "int4-g64 + BF16"
    assert report["now"]["bytes"] == sum(
        tensor.nbytes for tensor in load_safetensors(folders[name] / "model.safetensors").values()
    )
    warnings = "\n".join(warning["text"] for warning in report["warnings"])
    assert "tensor-parallel sizes that give whole groups of 64: 1, 2 (moe_intermediate_size 128)" in warnings


# Folders of other tools


def foreign(source: Path, folder: Path, block: dict[str, object], pack: Callable[[QuantizedWeight], Tensors]) -> Path:
    """The source with its experts in a tool's own packing, F16 scales, its config, and its copy of that config."""
    shutil.copytree(source, folder)
    tensors: Tensors = {}
    for shard in sorted(folder.glob("*.safetensors")):
        tensors |= load_safetensors(shard)
        shard.unlink()
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    for name in [name for name in tensors if ".layers.0.mlp.experts." in name and name.startswith("model.")]:
        numbers = get_scheme("int4-g64", scales="f16", asymmetric=not block.get("sym")).quantize(tensors.pop(name))
        tensors |= {name.removesuffix("weight") + part: data for part, data in pack(numbers).items()}
    save_safetensors(folder / "model.safetensors", tensors)
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": block}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "quantize_config.json").write_text(json.dumps(block))
    return folder


def gptq_v2(numbers: QuantizedWeight) -> Tensors:
    return gptq.pack(numbers.codes, numbers.scales, numbers.zeros, 64, shift=0)


def gptq_v1_without_g_idx(numbers: QuantizedWeight) -> Tensors:
    parts = gptq.pack(numbers.codes, numbers.scales, numbers.zeros, 64)
    return {part: data for part, data in parts.items() if part != "g_idx"}


def awq_gemm(numbers: QuantizedWeight) -> Tensors:
    return awq.pack(numbers.codes, numbers.scales, numbers.zeros)


SKIPPED = {f"-:.*{part}.*": {} for part in ("layers.1", "attn", "shared", "mlp.gate$", "mtp")}
FOREIGN = {
    "gptq-v2": ({"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": False, "desc_act": False,
                 "checkpoint_format": "gptq_v2", "dynamic": SKIPPED}, gptq_v2),
    "gptq-v1": ({"quant_method": "gptq", "bits": 4, "group_size": 64, "sym": True, "dynamic": SKIPPED},
                gptq_v1_without_g_idx),
    "awq": ({"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "version": "GEMM", "zero_point": True,
             "modules_to_not_convert": ["layers.1", "attn", "shared", "mlp.gate", "mtp", "lm_head"]}, awq_gemm),
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_folders_of_other_tools(case: str, source: Path, tmp_path: Path) -> None:
    block, pack = FOREIGN[case]
    folder = foreign(source, tmp_path / "foreign", block, pack)
    before = open_weights(folder)
    assert before.quantized and {scheme.name for scheme in before.quantized.values()} == {"int4-g64"}
    done = run("convert", folder, tmp_path / "ours", "--format", "compressed-tensors")
    assert done.exit_code == 0, done.output
    assert not (tmp_path / "ours" / "quantize_config.json").exists()
    after = open_weights(tmp_path / "ours")
    assert set(after.names) == set(before.names) and after.quantized.keys() == before.quantized.keys()
    for name in before.quantized:
        left, right = before.load(name), after.load(name)
        assert isinstance(left, QuantizedWeight) and isinstance(right, QuantizedWeight)
        assert torch.equal(left.codes, right.codes) and torch.equal(left.scales, right.scales)
        assert left.scales.dtype == torch.float16
        assert torch.equal(left.dequantize(), right.dequantize())
    for against in (folder, source):
        assert run("verify", tmp_path / "ours", "--against", against).exit_code == 0

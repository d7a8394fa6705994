"""Fault injection: each fault that can befall a converted folder is found by `qconvert verify`, exit code 1, with the
right name in its output.

Every fault is tried with the manifest and without it, since hashes would find any change of a file and prove nothing
about the numeric checks.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from qconvert.checkpoint import MANIFEST, load_safetensors, save_safetensors, write_checkpoint
from qconvert.cli import main
from qconvert.quantization import quantize
from tests.tiny import tiny_config, tiny_tensors, write_tiny_checkpoint

EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"
QKVZ = "model.layers.0.linear_attn.in_proj_qkvz.weight"
ROUTER = "model.layers.2.mlp.gate.weight"
NORM = "model.layers.3.self_attn.q_norm.weight"
HEAD = "mtp.layers.0.mlp.experts.1.down_proj.weight"
SCALE = "_scale_inv"

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("faults") / "source")


@pytest.fixture(scope="module")
def clean(source: Path) -> Path:
    quantize(source, source.parent / "clean")
    return source.parent / "clean"


@pytest.fixture(params=["manifest", "no-manifest"])
def converted(request: pytest.FixtureRequest, clean: Path, tmp_path: Path) -> Path:
    target = Path(shutil.copytree(clean, tmp_path / "converted"))
    if request.param == "no-manifest":
        (target / MANIFEST).unlink()
    return target


def verify(target: Path, source: Path | None = None) -> Result:
    against = [] if source is None else ["--against", str(source)]
    done = CliRunner().invoke(main, ["verify", str(target), *against])
    assert not isinstance(done.exception, Exception) or isinstance(done.exception, SystemExit), done.exception
    return done


def damage(folder: Path, change: Callable[[Tensors], None]) -> None:
    """Change tensors of the folder's only shard, and write it as a whole, intact file."""
    path = folder / "model.safetensors"
    tensors = load_safetensors(path)
    change(tensors)
    save_safetensors(path, tensors)


def double_a_scale(tensors: Tensors) -> None:
    tensors[QKVZ + SCALE][1, 0] *= 2


def swap_two_scales(tensors: Tensors) -> None:
    scales = tensors[QKVZ + SCALE]
    assert scales[0, 0] != scales[1, 0]
    scales[[0, 1]] = scales[[1, 0]]


def shift_a_scale_by_one_step(tensors: Tensors) -> None:
    scales = tensors[QKVZ + SCALE]
    scales.view(torch.int16)[1, 0] += 1


def zero_an_expert(tensors: Tensors) -> None:
    tensors[EXPERT].view(torch.uint8).zero_()


def lose_a_tensor_of_the_head(tensors: Tensors) -> None:
    del tensors[HEAD], tensors[HEAD + SCALE]


def quantize_the_router(tensors: Tensors) -> None:
    tensors[ROUTER + SCALE] = torch.full((1, 1), 2.0**-9, dtype=torch.bfloat16)
    tensors[ROUTER] = (tensors[ROUTER].float() * 2**9).to(torch.float8_e4m3fn)


def permute_rows(tensors: Tensors) -> None:
    rows = tensors[QKVZ].view(torch.uint8)
    rows[:64] = rows[:64].roll(1, 0)


def flip_a_bit(tensors: Tensors) -> None:
    tensors[NORM].view(torch.uint8)[5] ^= 1


FAULTS = {
    double_a_scale: QKVZ,
    swap_two_scales: QKVZ,
    shift_a_scale_by_one_step: QKVZ,
    zero_an_expert: EXPERT,
    lose_a_tensor_of_the_head: HEAD,
    quantize_the_router: ROUTER,
    permute_rows: QKVZ,
    flip_a_bit: NORM,
}


def test_a_clean_conversion_passes(converted: Path, source: Path) -> None:
    for done in (verify(converted), verify(converted, source)):
        assert done.exit_code == 0, done.output
        assert "FAIL" not in done.output


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_fault_is_found_against_the_source(fault: Callable[[Tensors], None], converted: Path, source: Path) -> None:
    damage(converted, fault)
    done = verify(converted, source)
    assert done.exit_code == 1, done.output
    named = [line for line in done.output.splitlines() if FAULTS[fault] + ":" in line]
    assert named, done.output


@pytest.mark.parametrize("fault", [zero_an_expert, lose_a_tensor_of_the_head, quantize_the_router])
def test_fault_is_found_without_source(fault: Callable[[Tensors], None], converted: Path) -> None:
    damage(converted, fault)
    done = verify(converted)
    assert done.exit_code == 1, done.output
    assert FAULTS[fault] + ":" in done.output


def test_the_whole_head_missing_is_found_against_the_source(converted: Path, source: Path) -> None:
    def lose_the_head(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith("mtp.")]:
            del tensors[name]

    damage(converted, lose_the_head)
    done = verify(converted, source)
    assert done.exit_code == 1
    assert "mtp.fc.weight: missing" in done.output


def test_router_quantized_and_taken_off_the_skip_list(converted: Path, source: Path) -> None:
    damage(converted, quantize_the_router)
    config = json.loads((converted / "config.json").read_text())
    config["quantization_config"]["modules_to_not_convert"].remove(ROUTER.removesuffix(".weight"))
    (converted / "config.json").write_text(json.dumps(config))
    done = verify(converted)
    assert done.exit_code == 1
    assert f"{ROUTER}: is quantized" in done.output


@pytest.mark.parametrize("against", [True, False])
def test_truncated_shard_is_named(converted: Path, source: Path, against: bool) -> None:
    shard = converted / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    done = verify(converted, source if against else None)
    assert done.exit_code == 1
    assert "model.safetensors is truncated" in done.output


def test_missing_shard_is_named(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "converted"
    quantize(source, target, max_shard_size=10**6)
    shard = sorted(target.glob("*.safetensors"))[1]
    shard.unlink()
    done = verify(target)
    assert done.exit_code == 1
    assert shard.name in done.output


@pytest.mark.parametrize(
    ("entry", "wrong"),
    [
        ("model.layers.0.mlp.experts.0.up_proj", "it is quantized"),
        ("model.layers.0.mlp.router", "there is no such module"),
    ],
)
def test_wrong_skip_list_entry_is_named(converted: Path, entry: str, wrong: str) -> None:
    config = json.loads((converted / "config.json").read_text())
    config["quantization_config"]["modules_to_not_convert"].append(entry)
    (converted / "config.json").write_text(json.dumps(config))
    done = verify(converted)
    assert done.exit_code == 1
    assert f"{entry}: " in done.output and wrong in done.output


def test_kept_matrix_missing_in_the_skip_list_is_named(converted: Path) -> None:
    config = json.loads((converted / "config.json").read_text())
    config["quantization_config"]["modules_to_not_convert"].remove("mtp.fc")
    (converted / "config.json").write_text(json.dumps(config))
    done = verify(converted)
    assert done.exit_code == 1
    assert "mtp.fc: in full precision, but not listed" in done.output


def test_one_projection_of_a_fused_group_in_full_precision_is_named(tmp_path: Path) -> None:
    """What a folder with a mixed q/k/v would look like, list and all."""
    source, target = tmp_path / "source", tmp_path / "converted"
    tensors = tiny_tensors(tiny_config())
    write_checkpoint(source, tiny_config(), tensors)
    quantize(source, target)
    name = "model.layers.3.self_attn.k_proj.weight"

    def keep(stored: Tensors) -> None:
        del stored[name + SCALE]
        stored[name] = tensors[name]

    damage(target, keep)
    config = json.loads((target / "config.json").read_text())
    config["quantization_config"]["modules_to_not_convert"].append(name.removesuffix(".weight"))
    (target / "config.json").write_text(json.dumps(config))
    done = verify(target)
    assert done.exit_code == 1
    assert "qkv_proj: engines load it as one tensor" in done.output and name in done.output


@pytest.mark.parametrize(
    ("value", "text"), [(float("nan"), "is not finite"), (float("inf"), "is not finite")], ids=["nan", "infinity"]
)
def test_kept_value_that_is_not_finite_is_named(converted: Path, value: float, text: str) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors[NORM][3] = value

    damage(converted, spoil)
    done = verify(converted)
    assert done.exit_code == 1
    assert f"{NORM}: [3] {text}" in done.output


@pytest.mark.parametrize(
    ("spoil", "text"),
    [
        (lambda t: t[QKVZ].view(torch.uint8)[200, 7].fill_(0xFF), "block (1, 0) holds a NaN code"),
        (lambda t: t[QKVZ + SCALE][2, 0].fill_(-1.0), "a scale is not a finite positive number"),
        (lambda t: t[QKVZ + SCALE][2, 0].fill_(float("nan")), "a scale is not a finite positive number"),
        (lambda t: t[QKVZ].view(torch.uint8)[128:256].bitwise_and_(0xF7), "block (1, 0) has no code as large as 448"),
    ],
    ids=["nan-code", "negative-scale", "nan-scale", "no-code-448"],
)
def test_impossible_numbers_are_named(converted: Path, spoil: Callable[[Tensors], None], text: str) -> None:
    damage(converted, spoil)
    done = verify(converted)
    assert done.exit_code == 1
    assert QKVZ in done.output and text in done.output

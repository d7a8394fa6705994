"""Faults of INT4 folders that `qconvert verify` finds, exit code 1, with the right name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qconvert.checkpoint import MANIFEST
from qconvert.errors import UserError
from qconvert.formats import open_weights
from qconvert.quantization import quantize
from tests.int4.folders import DOWN, EXPERT, FORMATS, Tensors, damage, run


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
    block.pop("block_name_to_quantize", None)  # which would exclude the head, too
    block[key] = {entry: entries[entry] for entry in kept} if isinstance(entries, dict) else kept
    (target / "config.json").write_text(json.dumps(config))
    done = run("verify", target)
    assert done.exit_code == 1
    assert "mtp.layers.0.mlp.experts.0.gate_proj: in full precision, but not listed" in done.output or (
        "mtp." in done.output and "not listed" in done.output
    )

"""`verify` on folders of calibrated methods: clean ones pass, with manifest and without; faults are found by name."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from qconvert.checkpoint import MANIFEST, TENSOR_REPORT, Checkpoint
from qconvert.quantization import convert
from tests.int4.folders import CALIBRATED, EXPERT, Tensors, damage, run


@pytest.mark.parametrize("method", CALIBRATED)
@pytest.mark.parametrize("state", ["manifest", "no manifest", "converted"])
def test_clean_folders_verify(method: str, state: str, made: dict[str, Path], model: Path, tmp_path: Path) -> None:
    target = tmp_path / "folder"
    if state == "converted":
        convert(made[method], target, file_format="gptq")
        assert not (target / TENSOR_REPORT).exists()
    else:
        shutil.copytree(made[method], target)
    if state == "no manifest":
        (target / MANIFEST).unlink()
    done = run("verify", target, "--against", model)
    assert done.exit_code == 0, done.output
    assert run("inspect", target).exit_code == 0


def test_a_gptq_folder_that_says_mse_is_found(made: dict[str, Path], model: Path, tmp_path: Path) -> None:
    """The method in the manifest decides on the bound: the tight one is not given up for all."""
    target = Path(shutil.copytree(made["gptq"], tmp_path / "folder"))
    record = json.loads((target / MANIFEST).read_text())
    record["recipe"]["method"] = "mse"
    (target / MANIFEST).write_text(json.dumps(record))
    done = run("verify", target, "--against", model)
    assert done.exit_code == 1 and "further from the source than rounding explains" in done.output


def swap_nibbles(tensors: Tensors) -> None:
    packed = tensors[f"{EXPERT}.weight_packed"].view(torch.uint8)
    packed.copy_((packed << 4) | (packed >> 4))


def shift_groups(tensors: Tensors) -> None:
    scales = tensors[f"{EXPERT}.weight_scale"]
    scales.copy_(scales.roll(1, 1))


def shift_rows(tensors: Tensors) -> None:
    scales = tensors[f"{EXPERT}.weight_scale"]
    scales.copy_(scales.roll(1, 0))


def double_a_scale(tensors: Tensors) -> None:
    tensors[f"{EXPERT}.weight_scale"][5, 1] *= 2


def move_codes_by_two(tensors: Tensors) -> None:
    """Within what other tools may do, not within what ours does: only the manifest tells."""
    packed = tensors[f"{EXPERT}.weight_packed"].view(torch.uint8)
    low = packed & 15
    packed[:, ::8] = torch.where(low >= 8, packed - 2, packed + 2)[:, ::8]


@pytest.mark.parametrize("keep_manifest", [True, False])
@pytest.mark.parametrize("fault", [swap_nibbles, shift_groups, shift_rows, double_a_scale, move_codes_by_two])
def test_faults_are_found(fault: Any, keep_manifest: bool, made: dict[str, Path], model: Path, tmp_path: Path) -> None:
    target = Path(shutil.copytree(made["gptq"], tmp_path / "damaged"))
    if not keep_manifest:
        (target / MANIFEST).unlink()
    damage(target, fault)
    done = run("verify", target, "--against", model)
    if fault is move_codes_by_two and not keep_manifest:
        assert done.exit_code == 0, done.output
        return
    assert done.exit_code == 1
    assert [line for line in done.output.splitlines() if line.strip().startswith(EXPERT)], done.output


def test_a_report_that_was_changed_is_found_and_not_carried_over(made: dict[str, Path], tmp_path: Path) -> None:
    target = Path(shutil.copytree(made["gptq"], tmp_path / "folder"))
    (target / TENSOR_REPORT).write_text("name\n")
    done = run("verify", target)
    assert done.exit_code == 1 and TENSOR_REPORT in done.output
    assert TENSOR_REPORT not in Checkpoint.open(target).other_files()

"""Folders that AutoRound, GPTQModel and AutoAWQ made (`made_by_*.py`): read right, converted, and what is wrong with
them named."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from qconvert.errors import UserError
from qconvert.formats import open_weights
from qconvert.quantization import convert, dequantize, plan_convert, plan_dequantize
from qconvert.schemes import QuantizedWeight
from tests.int4.folders import FORMATS, run
from tests.int4.foreign import load, restore, sha256, source_tensors, write_source

# What `verify` finds, by the first words of its lines; nothing else may fail.
PARTS = ("gate_proj", "up_proj", "down_proj")
HEAD_EXPERTS = {f"mtp.layers.0.mlp.experts.{expert}.{part}" for expert in (0, 1) for part in PARTS}
HEAD_SHARED = {f"mtp.layers.0.mlp.shared_expert.{part}" for part in PARTS}
HEAD_REST = {f"mtp.layers.0.self_attn.{part}_proj" for part in "qkvo"} | {
    "mtp.fc", "mtp.layers.0.mlp.gate", "mtp.layers.0.mlp.shared_expert_gate"
}  # fmt: skip
BLOCKS = "block_name_to_quantize: model.layers,mtp.layers"
SMALL = {"model.layers.0.linear_attn.in_proj_ba.weight", "mtp.fc.weight"}
FAULTS: dict[str, dict[str, set[str]]] = {
    # AutoRound quantizes the head's first layer, too, which is in none of the blocks that its config names.
    "auto-round": {"precision": SMALL, "skip-list": {BLOCKS}},
    "auto-round-asym": {"precision": SMALL, "skip-list": {BLOCKS}},
    # In other tools' formats it keeps the head, and does not say so.
    "auto-round-as-gptq": {"skip-list": HEAD_EXPERTS | HEAD_SHARED},
    "auto-round-as-awq": {"skip-list": HEAD_EXPERTS | HEAD_SHARED | HEAD_REST},
    "auto-round-awq": {},
    # An empty list: vLLM guesses linear layers by their types, but never experts.
    "autoawq": {"skip-list": HEAD_EXPERTS},
    # GPTQModel loses the head.
    "gptqmodel": {"source": {name for name in source_tensors() if name.startswith("mtp.")}},
}
FAULTS["gptqmodel-v2"] = FAULTS["gptqmodel-v2-asym"] = FAULTS["gptqmodel"]
READABLE = sorted(FAULTS)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("tools") / "source")


@pytest.mark.parametrize("case", READABLE)
def test_decoded_as_the_tool_decodes(case: str, tmp_path: Path) -> None:
    """Every weight bit for bit, in the type of its scales."""
    decoded = load(case)[1]["decoded"]
    weights = open_weights(restore(case, tmp_path / "folder"))
    assert decoded.keys() == weights.quantized.keys() and len(decoded) >= 6
    for name, digest in decoded.items():
        numbers = weights.load(name)
        assert isinstance(numbers, QuantizedWeight)
        assert sha256(numbers.dequantize(numbers.scales.dtype)) == digest, name


@pytest.mark.parametrize("case", READABLE)
def test_verify_names_what_is_wrong_and_no_more(case: str, plain: Path, tmp_path: Path) -> None:
    folder = restore(case, tmp_path / "folder")
    done = run("verify", folder, "--against", plain, "--json")
    found = {check["name"]: check for check in json.loads(done.output)["checks"] if not check["ok"]}
    assert found.keys() == FAULTS[case].keys(), done.output
    for name, expected in FAULTS[case].items():
        assert found[name]["failures"] == len(expected), found[name]["detail"]
        assert set(found[name]["tensors"]) <= expected
    assert done.exit_code == (1 if FAULTS[case] else 0)


@pytest.mark.parametrize("case", ["autoawq", "gptqmodel"])
def test_guessed_modules_are_a_note(case: str, tmp_path: Path) -> None:
    """Without the head nothing is wrong for vLLM; SGLang would read dense layers as quantized."""
    folder = restore(case, tmp_path / "folder")
    _drop_head(folder)
    done = run("verify", folder)
    assert done.exit_code == 0, done.output
    assert "more are without an entry: vLLM guesses them, SGLang does not" in done.output
    warnings = json.loads(run("inspect", folder, "--json").output)["warnings"]
    assert any(w["engine"] == "SGLang" and "no entry of config.json excludes them" in w["text"] for w in warnings)
    convert(folder, tmp_path / "listed", file_format="compressed-tensors")
    assert "guesses" not in run("verify", tmp_path / "listed").output


def _drop_head(folder: Path) -> None:
    from qconvert.checkpoint import load_safetensors, save_safetensors

    path = next(folder.glob("*.safetensors"))
    tensors = load_safetensors(path)
    save_safetensors(path, {name: data for name, data in tensors.items() if not name.startswith("mtp.")})
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)


@pytest.mark.parametrize("case", READABLE)
def test_every_format_holds_the_numbers_of_the_tool(case: str, plain: Path, tmp_path: Path) -> None:
    folder = restore(case, tmp_path / "folder")
    before = open_weights(folder)
    assert before.format is not None
    for name in set(FORMATS) - {before.format.name}:
        target = tmp_path / name
        convert(folder, target, file_format=name)
        after = open_weights(target)
        assert after.quantized.keys() == before.quantized.keys()
        for weight in before.quantized:
            left, right = before.load(weight), after.load(weight)
            assert isinstance(left, QuantizedWeight) and isinstance(right, QuantizedWeight)
            assert torch.equal(left.codes, right.codes) and torch.equal(left.scales, right.scales)
            assert left.scales.dtype == right.scales.dtype
            assert (left.zeros is None) == (right.zeros is None)
            assert left.zeros is None or torch.equal(left.zeros, torch.as_tensor(right.zeros))
        report = json.loads(run("verify", target, "--against", folder, "--json").output)
        faults = {check["name"] for check in report["checks"] if not check["ok"]}
        assert faults <= {"precision"} & FAULTS[case].keys()  # weights that engines cannot load stay quantized
        shutil.rmtree(target)
    dequantize(folder, tmp_path / "bf16")
    thawed = open_weights(tmp_path / "bf16")
    for weight in before.quantized:
        numbers = before.load(weight)
        assert isinstance(numbers, QuantizedWeight)
        assert torch.equal(torch.as_tensor(thawed.load(weight)), numbers.dequantize())


def test_act_order_is_refused_while_the_plan_is_made(tmp_path: Path) -> None:
    folder = restore("gptqmodel-act-order", tmp_path / "folder")
    assert load("gptqmodel-act-order")[1]["config"]["desc_act"] is True
    for plan in (
        lambda: plan_convert(folder, tmp_path / "out", file_format="awq"),
        lambda: plan_dequantize(folder, tmp_path / "out"),
    ):
        with pytest.raises(UserError, match=r"cannot be read: its groups are not in order \(g_idx, act-order\)"):
            plan()
    assert run("convert", folder, tmp_path / "out", "--format", "awq", "--dry-run").exit_code == 2
    assert not (tmp_path / "out").exists() and [path.name for path in tmp_path.iterdir()] == ["folder"]
    done = run("verify", folder)
    assert done.exit_code == 1 and "its groups are not in order" in done.output
    warnings = json.loads(run("inspect", folder, "--json").output)["warnings"]
    assert any("refuses desc_act" in warning["text"] for warning in warnings)


def test_act_order_in_name_only_is_converted(tmp_path: Path) -> None:
    """The config asks for act-order, but the groups are in order: nothing would be lost."""
    folder = restore("gptqmodel", tmp_path / "folder", desc_act=True)
    assert plan_convert(folder, tmp_path / "out", file_format="awq").counts["repacked"] == 11


@pytest.mark.parametrize("case, key", [("gptqmodel", "dynamic"), ("auto-round-as-gptq", "dynamic"),
                                       ("auto-round", "extra_config"), ("auto-round-awq", "extra_config")])  # fmt: skip
def test_settings_of_single_modules_are_refused(case: str, key: str, tmp_path: Path) -> None:
    rules = load(case)[1]["config"].get(key, {})
    for setting in ({"bits": 8}, {"group_size": 64}, {"sym": False}):
        folder = restore(case, tmp_path / str(setting), **{key: {**rules, ".*down_proj.*": setting}})
        done = run("inspect", folder)
        assert done.exit_code == 2
        assert f"{key} sets {next(iter(setting))} for '.*down_proj.*'" in done.output


def test_copies_of_the_old_config_are_left_out(tmp_path: Path) -> None:
    folder = restore("auto-round", tmp_path / "folder")
    (folder / "quantization_config.json").write_text("{}")
    convert(folder, tmp_path / "out", file_format="gptq")
    assert not (tmp_path / "out" / "quantization_config.json").exists()


def test_packing_that_vllm_refuses_is_warned_of(tmp_path: Path) -> None:
    folder = restore("auto-round-asym", tmp_path / "folder")
    warnings = json.loads(run("inspect", folder, "--json").output)["warnings"]
    assert any("refuses the packing 'auto_round'" in warning["text"] for warning in warnings)

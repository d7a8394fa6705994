"""Folders made by calibrated methods, through the whole tool: the report, the same bytes however they were made,
fallbacks and every refusal by name."""

import csv
import json
import shutil
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from qconvert import calibrated, calibration
from qconvert.checkpoint import TENSOR_REPORT, load_safetensors, save_safetensors
from qconvert.cli.quantize import tensor_lines
from qconvert.errors import UserError
from qconvert.families import family_of
from qconvert.formats import open_weights
from qconvert.manifest import Manifest
from qconvert.quantization import plan_quantize, quantize, run_plan
from qconvert.schemes import QuantizedWeight, get_scheme
from qconvert.schemes.int4 import Int4, gptq
from qconvert.tensor_report import TensorRow, summarise, to_csv
from qconvert_evals.calibration import LayerWalk
from tests.int4.folders import CALIBRATED, CONFIG, DOWN, EXPERT, run
from tests.test_quantize import SMALL, hashes
from tests.tiny import tiny_config


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / TENSOR_REPORT).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("method", CALIBRATED)
def test_report_of_tensors(method: str, made: dict[str, Path], model: Path) -> None:
    rows, weights = rows_of(made[method]), open_weights(made[method])
    assert {row["name"] for row in rows} == weights.quantized.keys()
    original = open_weights(model)
    for row in rows:
        before, after = original.load(row["name"]), weights.load(row["name"])
        assert isinstance(before, torch.Tensor) and isinstance(after, QuantizedWeight)
        error = float((after.dequantize(torch.float32) - before.float()).norm() / before.float().norm())
        assert float(row["relative_error"]) == pytest.approx(error, abs=2e-6)
        assert row["scheme"] == "int4-g32" and row["method"] == method and int(row["tokens"]) >= 0
    manifest = Manifest.load(made[method])
    assert manifest is not None and TENSOR_REPORT in manifest.output["files"]
    tokens = manifest.recipe["calibration"]["tokens"]
    named = {row["name"]: row for row in rows}
    assert int(named["model.layers.0.linear_attn.out_proj.weight"]["tokens"]) == tokens
    experts = [int(named[f"model.layers.0.mlp.experts.{e}.up_proj.weight"]["tokens"]) for e in range(2)]
    assert sum(experts) == 2 * tokens  # both of two experts are chosen
    assert manifest.tensors["methods"] == {method: len(rows)} and manifest.tensors["fallbacks"] == {}
    places = [family_of(CONFIG).place(row["name"])[0] for row in rows]
    assert places == sorted(places)  # the order of the walk


def test_gptq_has_less_output_error_and_imatrix_less_weighted_error(made: dict[str, Path], model: Path) -> None:
    original, stored = open_weights(model), {name: open_weights(made[name]) for name in CALIBRATED}
    walk = _walk(model, made["gptq"])
    plain = get_scheme("int4-g32")
    for name in (f"{DOWN}.weight", f"{EXPERT}.weight"):
        weight, inputs = original.load(name), walk.inputs(name)
        moments = inputs.hessian()
        assert isinstance(weight, torch.Tensor)
        found = {"mse": plain.quantize(weight)}
        for method in CALIBRATED:
            loaded = stored[method].load(name)
            assert isinstance(loaded, QuantizedWeight)
            found[method] = loaded
        hessian = gptq.estimate(moments)
        outputs = {method: gptq.output_error(weight, numbers, hessian) for method, numbers in found.items()}
        assert outputs["gptq"] < 0.95 * outputs["imatrix"]
        diagonal = torch.diag(hessian.diagonal())
        weighted = {method: gptq.output_error(weight, numbers, diagonal) for method, numbers in found.items()}
        assert weighted["imatrix"] < weighted["mse"]


def _walk(model: Path, folder: Path) -> Any:
    manifest = Manifest.load(folder)
    assert manifest is not None
    names = [row["name"] for row in rows_of(folder)]
    return calibrated.open_walk(model, manifest.recipe, names, 1, lambda what: None)


def options(text: Path, method: str = "gptq") -> dict[str, Any]:
    return {"scheme": "int4-g32", "method": method, "calibration": str(text), "calibration_tokens": 600}


@pytest.mark.parametrize("method", CALIBRATED)
def test_the_same_bytes_for_any_number_of_workers_and_any_interruption(
    method: str, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {**options(text, method), "max_shard_size": SMALL // 4, "recipe": "all-linears"}
    for name, workers in (("one", 1), ("three", 3)):
        quantize(model, tmp_path / name, workers=workers, **asked)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "three")
    taken: list[str] = []
    inputs = LayerWalk.inputs

    def interrupted(self: LayerWalk, name: str) -> Any:
        taken.append(name)
        if name.startswith("model.layers.1.mlp.experts.1"):
            raise KeyboardInterrupt
        return inputs(self, name)

    monkeypatch.setattr(LayerWalk, "inputs", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quantize(model, tmp_path / "again", workers=2, **asked)
    before = set(taken)
    monkeypatch.setattr(LayerWalk, "inputs", lambda self, name: (taken.append(name), inputs(self, name))[1])
    taken.clear()
    quantize(model, tmp_path / "again", workers=2, **asked)
    assert before - set(taken), "finished shards are not made again"
    assert hashes(tmp_path / "again") == hashes(tmp_path / "one")


def test_a_dry_run_runs_nothing(model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LayerWalk, "inputs", lambda *_: pytest.fail("the model ran"))
    done = run("quantize", model, tmp_path / "out", "--scheme", "int4-g32", "--method", "gptq", "--calibration", text,
               "--dry-run", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert plan["recipe"]["calibration"]["sha256"] and plan["recipe"]["min_tokens"] == calibrated.DEFAULT_MIN_TOKENS
    assert "131,072 were asked for" in plan["notes"][-1]
    assert not (tmp_path / "out").exists()


def test_another_text_is_another_plan(model: Path, text: Path, tmp_path: Path) -> None:
    plans = [plan_quantize(model, tmp_path / "out", **{**options(text), "calibration_tokens": n}) for n in (600, 300)]
    assert plans[0].fingerprint != plans[1].fingerprint
    other = tmp_path / "text.jsonl"
    shutil.copy(text, other)
    plan = plan_quantize(model, tmp_path / "out", **options(other))
    other.write_text(other.read_text().replace("a", "o"))
    with pytest.raises(UserError, match="calibration text changed"):
        run_plan(plan)
    assert not list(tmp_path.glob(".out*"))


def test_a_text_of_unequal_domains_is_chosen_again_as_it_was_planned(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One domain has less than its share: the budget asked for, not the tokens found, tells what is chosen."""
    file = tmp_path / "text.jsonl"
    lines = [{"text": "ab" * 40, "domain": "small"}, *({"text": "cde" * 99, "domain": "large"} for _ in range(9))]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plan = plan_quantize(model, tmp_path / "out", **options(file))
    assert plan.recipe["calibration"]["tokens"] < plan.recipe["calibration"]["asked"]
    run_plan(plan)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "gptq", "calibration": None}, "--method gptq needs a text"),
        ({"method": "imatrix", "calibration": None}, "--method imatrix needs a text"),
        ({"method": "mse"}, "--calibration is of no use"),
        ({"method": None}, "--calibration is of no use"),
        ({"method": "rtn", "calibration": None}, "--calibration-tokens is of no use"),
        ({"method": "mse", "calibration": None, "calibration_tokens": None, "min_tokens": 5}, "--min-tokens is of no"),
        ({"scheme": "fp8-block128"}, "plain rounding only"),
        ({"calibration": "nowhere.txt"}, "no such file"),
    ],
)
def test_refusals(changed: dict[str, Any], message: str, model: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        plan_quantize(model, tmp_path / "out", **{**options(text), **changed})


def test_a_missing_extra_is_named(model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point = metadata.EntryPoint("reference", "no_such_package.calibration:open_text", calibration.GROUP)
    for points in ([], [point]):
        monkeypatch.setattr(calibration.metadata, "entry_points", lambda group, points=points: points)
        with pytest.raises(UserError, match=r"pip install 'qconvert\[evals\]'"):
            plan_quantize(model, tmp_path / "out", **options(text))
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'qconvert\[evals\]'"):
        plan_quantize(model, tmp_path / "out", **options(text))
    broken = metadata.EntryPoint("reference", "qconvert.no_such_module:open_text", calibration.GROUP)
    monkeypatch.setattr(calibration.metadata, "entry_points", lambda group: [broken])
    with pytest.raises(ModuleNotFoundError):
        calibration.find_calibration()


@pytest.mark.parametrize(("scheme", "method"), [("fp8-block128", "rtn"), ("int4-g64", "mse"), ("int4-g64", "rtn")])
def test_methods_without_calibration_report_too(scheme: str, method: str, model: Path, tmp_path: Path) -> None:
    asked = None if scheme == "fp8-block128" else method
    manifest = quantize(model, tmp_path / "out", scheme=scheme, method=asked)
    rows = rows_of(tmp_path / "out")
    assert rows and {(row["scheme"], row["method"], row["tokens"], row["note"]) for row in rows} == {
        (scheme, method, "", "")
    }
    assert {row["name"] for row in rows} == open_weights(tmp_path / "out").quantized.keys()
    assert "fallbacks" not in manifest.tensors and manifest.tensors["kinds"]["experts.up_proj"]["tensors"] == 4
    assert run("verify", tmp_path / "out", "--against", model).exit_code == 0


class Given:
    """Inputs with the moments that a test wants."""

    def __init__(self, hessian: torch.Tensor, tokens: int = 100) -> None:
        self.tokens, self._hessian = tokens, hessian

    def importance(self) -> gptq.Moments:
        return gptq.Moments(self._hessian.diagonal(), self.tokens, self._hessian.diagonal(), 10**6)

    def hessian(self) -> gptq.Moments:
        return gptq.Moments(self._hessian, self.tokens, self._hessian, 10**6)


def outcome(hessian: torch.Tensor, tokens: int = 100, method: str = "gptq") -> calibrated.Outcome:
    weight = torch.randn(16, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    scheme = get_scheme("int4-g32", method=method)
    assert isinstance(scheme, Int4)
    return calibrated.quantize_calibrated(weight, scheme, calibrated.Statistics(Given(hessian, tokens)))


def test_fallbacks_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    eye = torch.eye(64, dtype=torch.float64)
    for bad in (0 * eye, torch.nan * eye, torch.inf * eye):
        for method in CALIBRATED:
            done = outcome(bad, method=method)
            assert (done.method, done.note) == ("mse", calibrated.NEVER_ACTIVE)
    indefinite = eye + 9 * (1 - eye)
    assert (outcome(indefinite).method, outcome(indefinite).note) == ("imatrix", calibrated.NO_FACTOR)
    assert outcome(indefinite, method="imatrix").note == ""
    assert (outcome(eye, tokens=0).method, outcome(eye, tokens=0).note) == ("gptq", calibrated.UNSEEN)
    worse = gptq.improve

    def spoiled(weight: torch.Tensor, start: QuantizedWeight, factor: gptq.Factor) -> QuantizedWeight:
        return replace(worse(weight, start, factor), codes=(start.codes // 2 * 2))

    monkeypatch.setattr(gptq, "improve", spoiled)
    done = outcome(eye)
    assert (done.method, done.note) == ("imatrix", calibrated.NOT_BETTER)
    assert int(done.numbers.codes.remainder(2).sum()) > 0


def test_fallbacks_and_few_tokens_are_counted() -> None:
    experts = "model.layers.{}.mlp.experts.{}.{}_proj.weight"
    rows = [
        TensorRow(experts.format(layer, e, part), "int4-g32", "gptq", 10 * e, 0.1, "")
        for layer in (0, 10, 2)
        for e in range(3)
        for part in ("gate", "up")
    ]
    rows[1] = replace(rows[1], method="mse", note="a, reason", relative_error=0.5)
    recipe = {"calibration": {}, "method": "gptq", "min_tokens": 15}
    found = summarise(rows, family_of(tiny_config()), recipe)
    assert found["fallbacks"] == {"a, reason": 1} and found["methods"] == {"gptq": 17, "mse": 1}
    assert found["few_tokens"] == {"threshold": 15, "modules": 6, "of": 9, "fewest": 0, "unseen": 3,
                                   "layers": {"layer 0": 2, "layer 2": 2, "layer 10": 2}}  # fmt: skip
    assert list(found["few_tokens"]["layers"]) == ["layer 0", "layer 2", "layer 10"]
    assert found["worst"][0] == {"name": rows[1].name, "relative_error": 0.5}
    assert found["kinds"]["experts.up_proj"] == {"tensors": 9, "mean_relative_error": round((0.5 + 0.8) / 9, 6)}
    shown = tensor_lines(found)
    assert "fallback, 1 tensors: a, reason" in shown and "methods: gptq 17, mse 1" in shown
    assert shown[2] == (
        "6 of 9 modules saw fewer than 15 calibration tokens (layer 0: 2, layer 2: 2, layer 10: 2); "
        "the fewest 0, none 3"
    )
    assert tensor_lines({}) == []
    lines = to_csv(rows).splitlines()
    assert lines[0] == "name,scheme,method,tokens,relative_error,note"
    assert lines[2] == f'{rows[1].name},int4-g32,mse,0,0.500000,"a, reason"'


def test_an_unusable_weight_is_named_and_nothing_is_left(model: Path, text: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(model, tmp_path / "source"))
    for shard in source.glob("*.safetensors"):
        tensors = load_safetensors(shard)
        if f"{DOWN}.weight" in tensors:
            tensors[f"{DOWN}.weight"][3, 7] = 3e38
            save_safetensors(shard, tensors)
    with pytest.raises(UserError, match=rf"{DOWN}.weight holds a value"):
        quantize(source, tmp_path / "out", **options(text))
    assert not list(tmp_path.glob(".out*"))

"""The whole comparison on a tiny random checkpoint: identities, completeness, every injected fault in its number."""

import json
import shutil
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from jsonschema import Draft202012Validator

from qconvert.errors import UserError
from qconvert.schemes import get_scheme
from qconvert_evals.compare import compare
from qconvert_evals.results import SCHEMA_VERSION, Results
from qconvert_evals.speculation import LiveSettings
from tests.evals.tiny_pair import damage, some_documents, write_pair, write_tokenizer
from tests.tiny import tiny_config, write_tiny_checkpoint

EXPERT = "model.layers.1.mlp.experts.2.up_proj.weight"
QKVZ = "model.layers.0.linear_attn.in_proj_qkvz.weight"
GATE = "model.layers.2.mlp.gate.weight"
NORM = "model.layers.3.input_layernorm.weight"
MTP_NORM = "mtp.norm.weight"


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("pair"))


def run(base: Path, prompts: int = 0, **candidates: Path) -> Results:
    live = LiveSettings(prompts, prompt_tokens=16, new_tokens=8)
    return compare(base, candidates, documents=some_documents(3), tokens=500, seq_len=96, draft_tokens=2, live=live)


@pytest.fixture(scope="module")
def healthy(pair: tuple[Path, Path]) -> Results:
    base, fp8 = pair
    return run(base, prompts=2, fp8=fp8, same=base)


def test_real_output_fits_the_frozen_schema(healthy: Results) -> None:
    text = files("qconvert_evals").joinpath(f"schemas/results.v{SCHEMA_VERSION}.json").read_text(encoding="utf-8")
    Draft202012Validator(json.loads(text)).validate(json.loads(healthy.to_json()))


def value(results: Results, name: str, lane: str = "fp8", at: str = "all") -> float:
    row = results.find(name, lane, at)
    assert row is not None and row.value is not None, (name, lane, at)
    return row.value


def test_base_against_itself_is_exactly_equal(healthy: Results) -> None:
    for row in healthy.measurements:
        if row.lane == "same":
            name = row.name.rpartition(".")[2]
            if row.name.startswith("logits.kl") or name in ("ln_ppl_ratio", "relative_error", "block_error_max"):
                assert row.value == 0, row
            if name in ("top1_agreement", "set_match", "jaccard"):
                assert row.value == 1, row
            if name.endswith("_difference"):
                assert row.value == 0, row


@pytest.mark.parametrize(("lane", "noise"), [("fp8", "fp8-noise"), ("same", "bf16-noise")])
def test_every_measurement_of_the_noise_lane_exists_for_the_candidate(healthy: Results, lane: str, noise: str) -> None:
    names = {one: {(row.name, row.slice) for row in healthy.measurements if row.lane == one} for one in (noise, lane)}
    assert names[noise] - names[lane] == set()
    values = {(row.name, row.slice): row.value for row in healthy.measurements if row.lane == noise}
    floors = [row for row in healthy.measurements if row.lane == lane and row.noise_floor is not None]
    assert len(floors) > 300
    assert all(row.noise_floor == values[row.name, row.slice] for row in floors)
    assert all(row.noise_floor is None for row in healthy.measurements if row.lane in ("bf16", noise))


def test_a_noise_lane_is_measured_against_the_lane_that_it_is_named_after(healthy: Results) -> None:
    """Against BF16 it would show the candidate's drift, which is ten times as large."""
    noise, drift = (value(healthy, "logits.kl_mean", lane) for lane in ("fp8-noise", "fp8"))
    assert 0 < noise < drift / 3
    assert value(healthy, "hidden.relative_error", "fp8-noise", "layer=0,feed=local") < 0.5 * value(
        healthy, "hidden.relative_error", "fp8", "layer=0,feed=local"
    )
    first, second = (value(healthy, "mtp.acceptance_greedy", lane, "position=1") for lane in ("fp8", "fp8-noise"))
    paired = value(healthy, "mtp.acceptance_greedy_difference", "fp8-noise", "position=1")
    assert paired == pytest.approx(second - first, abs=1e-12)
    assert {row["lane"] for row in healthy.figures["worst_tokens"]} == {"fp8", "same"}


def test_values_are_missing_only_with_a_reason(healthy: Results) -> None:
    reasons = {(one.name, one.lane, one.slice) for one in healthy.missing}
    assert {(row.name, row.lane, row.slice) for row in healthy.measurements if row.value is None} == reasons


def test_quantization_shows_everywhere_and_more_than_noise(healthy: Results) -> None:
    assert (
        0.02 < value(healthy, "weights.relative_error") < 0.03
    )  # e4m3: uniform in the mantissa step, 2^-4 / sqrt(6) or less
    assert value(healthy, "logits.kl_mean") > 10 * value(healthy, "logits.kl_mean", "bf16-noise") > 0
    for layer in ("0", "1", "2", "3", "mtp"):
        for feed in ("local", "free"):
            assert 0 < value(healthy, "router.topk_overlap", at=f"layer={layer},feed={feed}") <= 1
    assert value(healthy, "router.set_match", at="feed=local") > value(healthy, "router.set_match", at="feed=free")
    assert value(healthy, "weights.kept_changed") == value(healthy, "weights.missing_tensors") == 0
    assert value(healthy, "weights.relative_error_max", at="kind=mlp.gate") == 0


@pytest.mark.parametrize("lane", ["bf16", "bf16-noise", "fp8"])
def test_acceptance_adds_up_in_a_real_record(healthy: Results, lane: str) -> None:
    lengths = {"greedy": "mtp.accept_length"}
    for kind in ("greedy", "sampled_greedy_drafts", "sampled"):
        name, length = f"mtp.acceptance_{kind}", lengths.get(kind, f"mtp.accept_length_{kind}")
        first, second = (value(healthy, name, lane, f"position={step}") for step in (1, 2))
        assert value(healthy, length, lane) == pytest.approx(1 + first + second)
        assert first >= second
        if lane == "fp8":
            change = value(healthy, f"{name}_difference", lane, "position=1")
            assert change == pytest.approx(first - value(healthy, name, "bf16", "position=1"), abs=1e-12)
    overlap, drawn = (f"mtp.acceptance_{kind}" for kind in ("sampled", "sampled_greedy_drafts"))
    assert 0 < value(healthy, drawn, lane, "position=2") < value(healthy, drawn, lane, "position=1") < 1
    assert 0 < value(healthy, overlap, lane, "position=2") < value(healthy, overlap, lane, "position=1") < 1


@pytest.mark.parametrize("lane", ["bf16", "fp8"])
def test_live_counts_are_of_the_tokens_written(healthy: Results, lane: str) -> None:
    """Two prompts of 8 tokens: each round writes one token and what it kept, behind the prompt's first."""
    rounds = healthy.find("mtp.live_replay_gap", lane, "position=1")
    first = healthy.find("mtp.acceptance_live", lane, "position=1")
    assert rounds is not None and first is not None and first.value is not None
    assert 2 <= rounds.n <= first.n <= 2 * 7
    kept = first.value * first.n
    assert kept == pytest.approx(round(kept))
    assert first.n + kept <= 2 * 7


def test_record_is_complete_and_round_trips(healthy: Results, pair: tuple[Path, Path]) -> None:
    assert Results.from_json(healthy.to_json()) == healthy
    assert [(one.name, one.role, one.noise_lane) for one in healthy.lanes] == [
        ("bf16", "base", None), ("bf16-noise", "noise", None), ("fp8", "candidate", "fp8-noise"),
        ("same", "candidate", "bf16-noise"), ("fp8-noise", "noise", None),
    ]  # fmt: skip
    base, noise, fp8, _, own = healthy.lanes
    assert own.files == fp8.files and own.numerics == {**fp8.numerics, "accumulation": "split"}
    assert base.files == noise.files and "tokenizer.json" in base.files and len(fp8.files["config.json"]) == 64
    assert (noise.numerics["accumulation"], fp8.numerics["activations"]) == ("split", "fp8-group128")
    assert fp8.recipe["scheme"] == "fp8-block128"
    worst = healthy.figures["worst_tokens"]
    assert {row["lane"] for row in worst} == {"fp8", "same"} and worst[0]["kl"] >= worst[1]["kl"]
    assert set(worst[0]["document"]) and worst[0]["domain"] in ("code", "prose")
    assert len([row for row in healthy.figures["weights_worst"] if row["lane"] == "fp8"]) == 20


def test_two_runs_measure_the_same(pair: tuple[Path, Path]) -> None:
    first, second = (run(*pair[:1], fp8=pair[1]) for _ in range(2))
    assert first.measurements == second.measurements and first.figures == second.figures


@pytest.fixture
def broken(pair: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(pair[1], tmp_path / "broken"))


def worst_tensor(results: Results, figure: str = "weights_worst_blocks") -> str:
    return next(row["tensor"] for row in results.figures[figure] if row["lane"] == "fp8")


def test_doubled_scale(pair: tuple[Path, Path], broken: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[QKVZ + "_scale_inv"][1, 0] *= 2

    damage(broken, change)
    results = run(pair[0], fp8=broken)
    assert value(results, "weights.block_error_max") == pytest.approx(1, abs=0.1)
    assert worst_tensor(results) == worst_tensor(results, "weights_worst") == QKVZ


def test_swapped_scales(pair: tuple[Path, Path], broken: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        scales = tensors[QKVZ + "_scale_inv"]
        scales[[0, 1]] = scales[[1, 0]]
        assert not torch.equal(scales[0], scales[1])

    damage(broken, change)
    results = run(pair[0], fp8=broken)
    assert value(results, "weights.block_error_max") > 1.5 * 0.0265
    assert worst_tensor(results) == QKVZ


def test_zeroed_expert(pair: tuple[Path, Path], broken: Path) -> None:
    damage(broken, lambda tensors: tensors[EXPERT].view(torch.uint8).zero_())
    results = run(pair[0], fp8=broken)
    assert value(results, "weights.relative_error_max") == pytest.approx(1)
    assert worst_tensor(results, "weights_worst") == EXPERT


def test_permuted_rows(pair: tuple[Path, Path], broken: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        codes = tensors[QKVZ].view(torch.uint8)
        codes[:128] = codes[:128].roll(1, 0)

    damage(broken, change)
    results = run(pair[0], fp8=broken)
    assert value(results, "weights.block_error_max") > 1 and worst_tensor(results) == QKVZ
    first, second = (value(results, "hidden.relative_error", at=f"layer={layer},feed=local") for layer in (0, 1))
    assert first > second  # the layer that is broken shows in its own feed, the next one does not


def test_changed_kept_tensor(pair: tuple[Path, Path], broken: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[NORM].view(torch.uint8)[10] ^= 4

    damage(broken, change)
    results = run(pair[0], fp8=broken)
    assert value(results, "weights.kept_changed") == 1
    assert results.figures["weights_kept_changed"]["fp8"] == [NORM]


def test_quantized_router(pair: tuple[Path, Path], broken: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        quantized = get_scheme("fp8-block128").quantize(tensors[GATE])
        tensors[GATE], tensors[GATE + "_scale_inv"] = quantized.codes, quantized.scales

    damage(broken, change)
    results = run(pair[0], fp8=broken)
    assert value(results, "weights.relative_error_max", at="kind=mlp.gate") > 0.01
    assert value(results, "weights.unloadable") == 1 and results.figures["weights_unloadable"]["fp8"] == [GATE]


def test_lost_mtp_tensor_is_missing_not_zero(pair: tuple[Path, Path], broken: Path) -> None:
    damage(broken, lambda tensors: tensors.pop(MTP_NORM))
    results = run(pair[0], prompts=1, fp8=broken)
    assert value(results, "weights.missing_tensors") == 1
    assert results.figures["weights_missing"]["fp8"] == [MTP_NORM]
    for name, at in (
        ("mtp.acceptance_greedy", "position=1"),
        ("mtp.accept_length", "all"),
        ("mtp.accept_length_live", "all"),
    ):
        row = results.find(name, "fp8", at)
        assert row is not None and row.value is None
        (why,) = [one.why for one in results.missing if (one.name, one.lane, one.slice) == (name, "fp8", at)]
        assert MTP_NORM in why
    assert value(results, "mtp.accept_length", "bf16") >= 1


def test_base_without_head(tmp_path: Path) -> None:
    base = write_tiny_checkpoint(tmp_path / "coder", mtp=False)
    write_tokenizer(base)
    results = run(base, prompts=1, again=base)
    assert {one.why for one in results.missing if one.lane == "bf16"} == {"the checkpoint has no MTP head"}
    assert value(results, "logits.kl_max", "again") == 0


def test_not_a_number_in_a_lane(pair: tuple[Path, Path], broken: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"][5, 5] = torch.nan

    damage(broken, change)
    results = run(pair[0], fp8=broken)
    assert value(results, "logits.nonfinite_tokens") > 400
    row = results.find("logits.kl_mean", "fp8")
    assert row is not None and row.value is None
    json.loads(results.to_json())


def test_refusals(pair: tuple[Path, Path], broken: Path, tmp_path: Path) -> None:
    base, fp8 = pair
    with pytest.raises(UserError, match="quantized itself"):
        run(fp8, fp8=base)
    with pytest.raises(UserError, match="nothing to compare"):
        run(base)
    for name in ("bf16", "bf16-noise", "mine-noise"):
        with pytest.raises(UserError, match=f"cannot be called {name}"):
            run(base, **{name: fp8})
    other = write_tiny_checkpoint(tmp_path / "other", tiny_config(rope_theta=5e5, num_experts_per_tok=1))
    with pytest.raises(UserError, match="num_experts_per_tok, rope"):
        run(base, other=other)
    (broken / "tokenizer.json").write_text((broken / "tokenizer.json").read_text() + " ")
    with pytest.raises(UserError, match="another tokenizer"):
        run(base, fp8=broken)
    shutil.copy(base / "tokenizer.json", broken)
    damage(broken, lambda tensors: tensors.pop(NORM))
    with pytest.raises(UserError, match=NORM):
        run(base, fp8=broken)


def test_progress_counts_to_the_end(pair: tuple[Path, Path]) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    compare(
        pair[0], {"fp8": pair[1]}, documents=some_documents(2), tokens=200, seq_len=96, draft_tokens=1,
        live=LiveSettings(1, 16, 4),
        progress=lambda stage, done, total: seen.setdefault(stage, []).append((done, total)),
    )  # fmt: skip
    assert list(seen) == ["weights", "layers", "logits", "drafts", "decoding"]
    for calls in seen.values():
        assert calls == [(number, len(calls)) for number in range(1, len(calls) + 1)]

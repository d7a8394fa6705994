"""Tasks as one stage of a comparison: every lane measured, the noise lane beside, the record as results.json."""

from pathlib import Path

from qconvert.quantization import quantize
from qconvert_evals.compare import compare
from qconvert_evals.results import Results
from qconvert_evals.speculation import LiveSettings
from qconvert_evals.tasks.settings import TaskSettings
from tests.evals.tiny_pair import some_documents
from tests.tasks.conftest import write_model


def test_every_lane_has_scores_and_every_candidate_differences(tmp_path: Path) -> None:
    base = write_model(tmp_path / "bf16")
    quantize(base, tmp_path / "fp8")
    tasks = TaskSettings(("small_math", "small_context_32"), limit=2, max_gen_toks=3)
    results = compare(
        base, {"fp8": tmp_path / "fp8"}, documents=some_documents(1), tokens=64, seq_len=32, draft_tokens=1,
        live=LiveSettings(0), tasks=tasks,
    )  # fmt: skip
    assert Results.from_json(results.to_json()) == results
    for lane in ("bf16", "bf16-noise", "fp8", "fp8-noise"):
        for name in ("bench.small_math.exact_match", "bench.small_context_32.bits_per_byte"):
            score, difference = results.find(name, lane), results.find(f"{name}_difference", lane)
            assert score is not None and score.value is not None and score.n == 2
            assert (difference is None) == (lane == "bf16")
    drift = results.find("bench.small_context_32.bits_per_byte_difference", "fp8")
    assert drift is not None and drift.value != 0 and drift.noise_floor is not None
    record = results.figures["tasks"]
    assert {(row["task"], row["lane"]) for row in record["rows"]} == {
        (task, lane) for task in tasks.names for lane in ("bf16-noise", "fp8", "fp8-noise")
    }
    scores = {row["lane"]: row for row in record["rows"] if row["task"] == "small_context_32"}
    assert scores["fp8-noise"]["base"] == scores["fp8"]["score"] != scores["fp8"]["base"]
    assert [lane for lane, row in scores.items() if row["noise"]] == ["bf16-noise", "fp8-noise"]
    assert record["settings"]["limit"] == 2 and record["lm_eval"].startswith("0.4.")

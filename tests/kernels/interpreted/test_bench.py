"""The kernel benchmarks with a clock that is told the times: everything but the times is real, on tiny sizes."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need triton")

from qconvert_kernels import configurations, fp8_gemm
from qconvert_kernels.bench import measure, record, tune
from qconvert_kernels.bench.ceilings import Ceilings, measure_ceilings
from qconvert_kernels.bench.dense import DenseFp8, DenseInt4
from qconvert_kernels.bench.experts import RoutedExperts
from qconvert_kernels.bench.others import DeltaRule, QuantizeActivations, QuantizeWeights
from qconvert_kernels.bench.problem import Problem
from qconvert_kernels.bench.shapes import Experts, Heads, Weight
from qconvert_kernels.bench.timing import Call
from qconvert_kernels.grouped import tilings
from qconvert_kernels.tiling import Tiling

CPU = torch.device("cpu")
WEIGHT, EXPERTS = Weight("small", 128, 256), Experts(5, 128, 128, 2)
PROBLEMS: list[Problem] = [
    DenseFp8(WEIGHT, 3, eight_bit_inputs=True),
    DenseFp8(WEIGHT, 3, eight_bit_inputs=False),
    DenseInt4(WEIGHT, 3, 32),
    DenseInt4(WEIGHT, 3, 128),
    RoutedExperts(EXPERTS, 4, activations="fp8-group128"),
    RoutedExperts(EXPERTS, 4, skewed=True),
    RoutedExperts(EXPERTS, 4, group=64),
    *(QuantizeActivations(256, 3, behind) for behind in ("", "rms_norm", "silu_mul")),
    *(QuantizeWeights(WEIGHT, group, method) for group, method in ((0, "rtn"), (32, "rtn"), (128, "mse"))),
    DeltaRule(Heads(1, 2, 32, 32), 1, 5),
]


class Told:
    """Calls everything once; says 2 seconds, or what a function makes of the calls."""

    def __init__(self, seconds: Callable[[Call], float] = lambda call: 2.0) -> None:
        self.seconds = seconds

    def sets(self, size: int) -> int:
        return 2

    def samples(self, calls: Sequence[Call]) -> list[float]:
        for call in calls:
            call()
        return [self.seconds(calls[0])] * 3


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda one: f"{one.kernel} {one.shape}")
def test_every_problem_is_right_and_timed_beside_its_peers(problem: Problem) -> None:
    row = measure.measure(problem, CPU, Told())
    assert not row.wrong and row.error <= problem.tolerance
    assert row.times == (2.0, 2.0, 2.0)
    assert row.bytes_per_s == problem.bytes / 2 and row.flops_per_s == problem.flops / 2
    assert set(row.peers) == set(measure.PEERS[problem.kernel])
    for name, peer in row.peers.items():
        assert (peer.times is None) == bool(peer.why_not)
        if name in ("vllm", "flash-linear-attention"):
            assert peer.why_not.startswith("not installed")
        elif not name.startswith("torch._scaled_mm"):
            assert peer.times is not None, peer.why_not


def test_a_wrong_kernel_is_named_and_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault: scales of the wrong block."""
    right = fp8_gemm.fp8_block_gemm_nt

    def wrong(x: object, codes: Tensor, scales: Tensor, **rest: object) -> Tensor:
        return right(x, codes, scales.flip(1), **rest)

    monkeypatch.setattr(fp8_gemm, "fp8_block_gemm_nt", wrong)
    row = measure.measure(PROBLEMS[0], CPU, Told())
    assert "off by" in row.wrong and row.times is None and not row.peers
    assert measure.measure(PROBLEMS[2], CPU, Told()).times is not None


def test_a_result_that_is_not_finite_or_off_by_one_code_is_wrong() -> None:
    y = torch.ones(4)
    assert measure.relative_error(y * torch.nan, y, 0.1) == float("inf")
    assert measure.relative_error(torch.tensor([1, 2, 3, 5]).byte(), torch.tensor([1, 2, 3, 4]).byte(), 0.0) == 0.25


def test_a_peer_that_fails_is_quoted() -> None:
    def broken(problem: Problem, inputs: object) -> Call:
        raise RuntimeError("out of luck\nmore")

    row = measure.measure(PROBLEMS[3], CPU, Told(), {"int4_w4a16": {"theirs": broken}})
    assert row.peers["theirs"].why_not == "RuntimeError: out of luck"


def test_a_record_goes_to_json_and_back() -> None:
    rows = measure.run_all(PROBLEMS[:2], CPU, Told())
    rows.append(replace(rows[0], error=float("inf"), wrong="off", times=None, peers={}))
    run = record.finish(CPU, Ceilings(1e12, 1e14, None, "no such thing"), rows)
    assert record.from_json(record.to_json(run)) == run
    raw = json.loads(record.to_json(run))
    assert raw["targets"] and raw["rows"][2]["error"] is None
    raw["schema_version"] = 2
    with pytest.raises(ValueError, match="found 2"):
        record.from_json(json.dumps(raw))


def test_ceilings() -> None:
    found = measure_ceilings(CPU, Told(), copied=1 << 12, square=32)
    assert found.copy == (1 << 12) and found.bf16 == 32**3
    assert (found.fp8 is None) == bool(found.why_no_fp8)


def test_the_tuner_takes_what_the_clock_calls_quickest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written, found again by the device's name, and used for the product."""
    problem = DenseInt4(WEIGHT, 3, 128)
    wanted = Tiling("few_tokens", 16, 128, 2, 8, 3)

    def seconds(call: Call) -> float:
        return 1.0 if call.keywords.get("tiling") == wanted else 2.0  # type: ignore[attr-defined]

    monkeypatch.setattr(tune, "dense_candidates", lambda one: [Tiling("few_tokens", 16, 64, 1, 4, 3), wanted])
    found = tune.tune(problem, CPU, Told(seconds))
    assert (found.best, found.seconds, found.default_seconds, found.tried) == (wanted, 1.0, 2.0, 2)
    written, kept = tune.write(tune.configurations([found], "here"), "Some GPU 3/4", tmp_path)
    assert [path.name for path in written] == ["int4_w4a16.Some_GPU_3_4.json"] and not kept
    assert tune.write(tune.configurations([found], "here"), "Some GPU 3/4", tmp_path) == ([], written)
    monkeypatch.setenv(configurations.FOLDER, str(tmp_path))
    try:
        assert configurations.choose("int4_w4a16", "Some GPU 3/4", 2, 100, 300) == wanted
        assert configurations.choose("int4_w4a16", "Another GPU", 2, 100, 300) != wanted
    finally:
        configurations.entries.cache_clear()


def test_tuned_experts_are_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = RoutedExperts(Experts(2, 128, 128, 1), 1)

    def seconds(call: Call) -> float:
        tiling = call.keywords.get("tiling")  # type: ignore[attr-defined]
        return 3.0 if tiling is None else 2.0 - (tiling.tile == 16) - 0.5 * (tiling.down.num_warps == 8)

    few = [tilings.Product(64, 4, 3), tilings.Product(64, 8, 3)]
    monkeypatch.setattr(tune, "product", lambda *grid: few)
    found = tune.tune(problem, CPU, Told(seconds))
    assert isinstance(found.best, tilings.GroupedTiling) and found.seconds == 0.5
    assert (found.best.tile, found.best.down) == (16, few[1])
    tune.write(tune.configurations([found], "here"), "Some GPU", tmp_path)
    monkeypatch.setenv(configurations.FOLDER, str(tmp_path))
    try:
        assert tilings.choose("fp8_w8a16", "Some GPU", 1000, 2) == found.best
        assert tilings.choose("fp8_w8a16", "Another GPU", 8, 2) == tilings.DEFAULTS["fp8_w8a16"][0][1]
    finally:
        tilings.entries.cache_clear()


def test_tilings_that_fail_are_counted_by_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = DenseInt4(WEIGHT, 3, 128)
    monkeypatch.setattr(tune, "dense_candidates", lambda one: [Tiling("few_tokens", 16, 48, 1, 4, 3)])
    found = tune.tune(problem, CPU, Told())
    assert found.best is None and dict(found.skipped) == {"BadInput": 1}
    assert tune.configurations([found], "here") == {}

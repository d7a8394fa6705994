"""Bytes, operations, distinct experts, samples and targets, against counts made by hand."""

import numpy as np
import pytest
import torch

from qconvert_kernels.bench import measure, shapes, targets, tune
from qconvert_kernels.bench.ceilings import Ceilings
from qconvert_kernels.bench.dense import DenseFp8, DenseInt4
from qconvert_kernels.bench.experts import RoutedExperts
from qconvert_kernels.bench.measure import Peer, Row
from qconvert_kernels.bench.others import DeltaRule, QuantizeActivations, QuantizeWeights
from qconvert_kernels.bench.timing import GraphClock, Times

WEIGHT = shapes.Weight("w", 256, 384)
LIMITS = Ceilings(copy=4e12, bf16=8e14, fp8=None)


def test_bytes_and_operations() -> None:
    codes, scales, y = 256 * 384, 2 * 3 * 2, 5 * 256 * 2
    assert DenseFp8(WEIGHT, 5, True).bytes == codes + scales + 5 * 384 + 5 * 3 * 4 + y
    assert DenseFp8(WEIGHT, 5, False).bytes == codes + scales + 5 * 384 * 2 + y
    assert DenseInt4(WEIGHT, 5, 32).bytes == codes // 2 + 256 * 12 * 2 + 5 * 384 * 2 + y
    assert DenseFp8(WEIGHT, 5, True).flops == DenseInt4(WEIGHT, 5, 32).flops == 2 * 5 * 256 * 384
    assert QuantizeActivations(256, 3).bytes == 3 * 256 * 3 + 3 * 2 * 4
    assert QuantizeActivations(256, 3, "rms_norm").bytes == 3 * 256 * 5 + 3 * 2 * 4
    assert QuantizeWeights(WEIGHT).bytes == 256 * 384 * 3 + 2 * 3 * 2
    assert QuantizeWeights(WEIGHT, 32).bytes == 256 * 384 * 3 + 256 * 12 * 2
    step = DeltaRule(shapes.Heads(2, 4, 8, 16), 3, 1)
    assert step.bytes == 3 * (2 * (2 * 2 * 8 + 2 * 4 * 16) + 2 * 4 * 4) + 3 * 2 * 4 * 4 * 8 * 16
    assert step.flops == 3 * 4 * 7 * 8 * 16


def test_experts_count_what_is_touched() -> None:
    one = RoutedExperts(shapes.EXPERTS, 64)
    chosen = one.routes[0].numpy()
    assert chosen.shape == (64, 10) and all(len(set(row)) == 10 for row in chosen.tolist())
    assert one.distinct == len(np.unique(chosen))
    # 640 draws of 512, ten different ones a token: 512 (1 - (1 - 10/512)^64) = 367 expected; 4 sd are 29 at most.
    assert abs(one.distinct - 367) < 29
    assert RoutedExperts(shapes.EXPERTS, 64, skewed=True).distinct < one.distinct
    held = 3 * 2048 * 512 + 3 * 2 * 16 * 4
    assert one.bytes == one.distinct * held + 4 * 64 * 2048
    assert one.flops == 2 * 640 * 3 * 2048 * 512


def test_the_models_experts_have_the_size_of_the_models_weights() -> None:
    """49 layers of 512 experts, the MTP head's included, are 78.9 of the 81.3 billion parameters."""
    e = shapes.EXPERTS
    assert 3 * e.hidden * e.intermediate * e.experts * 49 == 78_920_024_064
    heads = shapes.HEADS
    assert 2 * heads.key_heads * heads.key_dim + 2 * heads.value_heads * heads.value_dim == 12_288


def test_samples() -> None:
    assert Times.of([3.0, 1.0, 2.0, 5.0, 4.0]) == (3.0, 1.4, 4.6)
    assert Times.of([7.0]) == (7.0, 7.0, 7.0)


def test_sets_fill_the_cache_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        L2_cache_size = 50 << 20

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    clock = GraphClock(torch.device("cuda"))
    assert [clock.sets(size) for size in (1 << 10, 1 << 20, 25 << 20, 1 << 30, 8 << 30)] == [128, 100, 4, 2, 2]


def row(kernel: str, tokens: int, seconds: float | None, **more: object) -> Row:
    times = None if seconds is None else Times(seconds, seconds, seconds)
    fields = {"shape": "512 experts, even", "bytes": 32 << 20, "flops": 10**9, "distinct": None} | more
    return Row(kernel=kernel, tokens=tokens, error=0, tolerance=0, times=times, **fields)  # type: ignore[arg-type]


def verdicts(*rows: Row) -> dict[str, tuple[str, float | None]]:
    return {one.target.name.split(":")[0]: (one.verdict, one.worst) for one in targets.judge(rows, LIMITS)}


def test_targets_stand_or_fall_with_the_worst_row() -> None:
    best = (32 << 20) / 4e12  # seconds at the copy bandwidth
    name = "dense FP8 up to 16 tokens, weights of 16 MB and more"
    assert verdicts(row("fp8_w8a8", 1, best / 0.9))[name] == ("aim reached", pytest.approx(0.9))
    assert verdicts(row("fp8_w8a8", 1, best / 0.9), row("fp8_w8a16", 16, best / 0.7))[name][0] == "met"
    assert verdicts(row("fp8_w8a8", 1, best / 0.9), row("fp8_w8a16", 16, best / 0.5))[name][0] == "missed"
    assert verdicts(row("fp8_w8a8", 32, best))[name] == ("not measured", None)
    assert verdicts(row("fp8_w8a8", 1, None))[name] == ("not measured", None)


def test_targets_beside_others() -> None:
    peers = {"torch bf16": Peer(Times(6e-6, 6e-6, 6e-6)), "vllm": Peer(None, "not installed: vllm")}
    found = verdicts(
        row("int4_w4a16", 8, 3e-6, peers=peers),
        row("grouped_int4_w4a16", 64, 10e-6), row("grouped_fp8_w8a8", 64, 16e-6), row("grouped_fp8_w8a16", 64, 14e-6),
        row("grouped_fp8_w8a16", 64, 1e-6, shape="512 experts, skewed"),
        row("fp8_w8a8", 4096, 1e-5, flops=10**10),
    )  # fmt: skip
    assert found["dense W4A16 up to 16 tokens"] == ("met", pytest.approx(2))
    assert found["INT4 experts, 16 to 128 tokens"] == ("met", pytest.approx(1.4))
    assert found["dense W8A8 from 4096 tokens"] == ("aim reached", pytest.approx(1.25))


def test_all_problems_and_what_is_tuned() -> None:
    every = list(measure.problems())
    assert {one.kernel for one in every} == set(measure.PEERS)
    assert [one.kernel for one in measure.chosen(every, "fp8_w8a8 in_proj")] == ["fp8_w8a8"] * len(shapes.TOKENS)
    tunable = tune.tunable(every)
    keys = [(one.kernel, getattr(one, "weight", None), one.tokens) for one in tunable]
    assert len(keys) == len(set(keys)) == len(shapes.TOKENS) * (3 * len(shapes.WEIGHTS) + 3)


def test_candidates_fit_and_waste_little() -> None:
    for tokens in (1, 16, 128, 8192):
        for one in (DenseFp8(WEIGHT, tokens, True), DenseInt4(WEIGHT, tokens, 128)):
            found = list(tune.dense_candidates(one))
            assert found and len(found) == len(set(found))
            assert all(tiling.block_tokens == 16 or tiling.block_tokens < 2 * tokens for tiling in found)
            assert any(tiling.path == "many_tokens" for tiling in found) == (one.kernel == "fp8_w8a8" and tokens >= 64)

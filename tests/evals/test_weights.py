"""Weight errors, and that each kind of damage to a tensor shows in the right number."""

import json
import math

import pytest
import torch

from qconvert_evals.metrics import hidden, weights


def values(state: weights.WeightState) -> dict[tuple[str, str], float | None]:
    return {(row.name, row.slice): row.value for row in weights.result(state).measurements}


@pytest.fixture
def base() -> torch.Tensor:
    return torch.randn(300, 260, generator=torch.Generator().manual_seed(5))


def one(base: torch.Tensor, candidate: torch.Tensor, quantized: bool = True) -> weights.WeightState:
    state = weights.WeightState("fp8")
    weights.update(state, "a.weight", "mlp", base, candidate, quantized)
    return state


def test_relative_error_and_sqnr(base: torch.Tensor) -> None:
    candidate = base + 0.01 * torch.randn(300, 260, generator=torch.Generator().manual_seed(6))
    found = values(one(base, candidate))
    expected = float((candidate - base).double().norm() / base.double().norm())
    assert found["weights.relative_error", "all"] == pytest.approx(expected, rel=1e-6)
    assert found["weights.sqnr_db", "kind=mlp"] == pytest.approx(-20 * math.log10(expected), rel=1e-6)
    assert found["weights.max_abs", "all"] == pytest.approx(float((candidate - base).abs().max()))


@pytest.mark.parametrize("fault", ["doubled", "zeroed", "swapped"])
def test_one_bad_tile_is_found_where_it_is(base: torch.Tensor, fault: str) -> None:
    candidate = base.clone()
    tile = candidate[128:256, 256:260]  # a partial tile
    if fault == "doubled":
        tile.mul_(2)
    elif fault == "zeroed":
        tile.zero_()
    else:
        tile.mul_(1.5)
        candidate[0:128, 0:128] /= 1.5
    state = one(base, candidate)
    expected = {"doubled": 1.0, "zeroed": 1.0, "swapped": 0.5}[fault]
    assert values(state)["weights.block_error_max", "all"] == pytest.approx(expected, rel=1e-5)
    assert weights.worst_blocks(state, 1)[0]["block"] == [128, 256]


def test_identical_weights_are_touched_by_nobody(base: torch.Tensor) -> None:
    state = one(base, base.clone(), quantized=False)
    found = weights.result(state)
    (row,) = [row for row in found.measurements if (row.name, row.slice) == ("weights.relative_error", "all")]
    assert (row.value, row.n) == (0.0, 0)
    assert [missing.name for missing in found.missing] == ["weights.sqnr_db"]
    assert weights.worst(state, 20) == []


def test_kept_tensor_that_changed_is_counted_and_named(base: torch.Tensor) -> None:
    state = one(base, base + 0.01)
    changed = base[0].clone()
    changed[7] *= 1.0001
    weights.update(state, "norm.weight", "norm", base[0], changed, False)
    weights.update(state, "gate.weight", "gate", base[1], base[1], False)
    assert values(state)["weights.kept_changed", "all"] == 1
    assert weights.kept_changed(state) == ["norm.weight"]
    assert values(state)["weights.relative_error", "kind=gate"] == 0


def test_restored_checkpoint_keeps_nothing_by_declaration(base: torch.Tensor) -> None:
    assert weights.kept_changed(one(base, base + 0.01, quantized=False)) == []


def test_not_a_number_never_hides(base: torch.Tensor) -> None:
    broken = base.clone()
    broken[3, 3] = torch.nan
    state = one(base, broken)
    weights.update(state, "fine.weight", "mlp", base, base + 0.01, True)
    found = weights.result(state)
    rows = {(row.name, row.slice): row.value for row in found.measurements}
    for name in ("relative_error", "relative_error_max", "block_error_max", "max_abs"):
        assert rows[f"weights.{name}", "all"] is None
    assert weights.worst(state, 2)[0]["tensor"] == "a.weight"
    json.dumps(weights.worst(state, 2), allow_nan=False)


def test_zero_tensor(base: torch.Tensor) -> None:
    zero = torch.zeros_like(base)
    assert values(one(zero, zero))["weights.relative_error", "all"] == 0
    assert values(one(zero, base))["weights.relative_error_max", "all"] == pytest.approx(1)


def test_hidden_error_by_document() -> None:
    state = hidden.HiddenState("fp8", ["code", "prose"])
    base = torch.ones(6, 4)
    candidate = base.clone()
    candidate[4:] += 0.5
    documents = torch.tensor([0, 0, 0, 1, 1, 1])
    for rows in (slice(0, 2), slice(2, 6)):
        hidden.update(state, "3", "local", base[rows], candidate[rows], documents[rows])
    (row,) = hidden.result(state).measurements
    assert row.slice == "layer=3,feed=local" and row.n == 2
    assert row.value == pytest.approx(math.sqrt(2 * 0.25 / 6))

"""Which experts a token goes to: the largest logits, and of equal ones the lower number, on every device."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qconvert_reference import moe
from qconvert_reference.linear import Numerics
from qconvert_reference.moe import route, top_experts

COARSE = st.lists(st.sampled_from([-2.0, -0.5, -0.0, 0.0, 0.25, 3.0]), min_size=1, max_size=12)


def by_hand(logits: list[float], count: int) -> list[int]:
    return sorted(range(len(logits)), key=lambda number: (-logits[number], number))[:count]


@given(COARSE, st.data())
def test_the_lower_number_wins_among_equals(logits: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(logits)))
    assert top_experts(torch.tensor(logits), count).tolist() == by_hand(logits, count)


def test_every_finite_number_has_its_place() -> None:
    values = [-3.4e38, -1e-30, -1e-45, -0.0, 0.0, 1e-45, 1.5, 3.4e38, float("inf"), float("-inf")]
    order = torch.randperm(len(values), generator=torch.Generator().manual_seed(0)).tolist()
    mixed = [values[number] for number in order]
    assert top_experts(torch.tensor(mixed), len(mixed)).tolist() == by_hand(mixed, len(mixed))


@pytest.mark.parametrize("normalise", [True, False])
def test_ties_in_bf16_logits_of_many_experts(normalise: bool) -> None:
    """512 experts, 10 chosen: of BF16 logits many a rank k is tied, which `topk` may settle in any way."""
    logits = torch.randn(3, 200, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = route(logits, 10, normalise)
    tied = found.logits.topk(11).values
    assert (tied[..., 9] == tied[..., 10]).sum() > 30
    flat = logits.float().flatten(0, 1)
    assert found.experts.flatten(0, 1).tolist() == [by_hand(row, 10) for row in flat.tolist()]
    shares = flat.softmax(-1).gather(1, found.experts.flatten(0, 1))
    expected = shares / shares.sum(-1, keepdim=True) if normalise else shares
    assert torch.equal(found.weights.flatten(0, 1), expected)


def test_a_layer_whose_experts_have_equal_gates_takes_the_first_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the whole layer, one expert after the other, and where a fused product takes the routes."""
    config = SimpleNamespace(num_experts_per_tok=2, norm_topk_prob=True, num_experts=6)
    generator = torch.Generator().manual_seed(0)
    weights = {"moe.gate.weight": torch.randn(1, 8, generator=generator).expand(6, 8).contiguous()}

    def load(name: str) -> torch.Tensor:
        shape = (8, 4) if "down_proj" in name else (1, 8) if "expert_gate" in name else (4, 8)
        return weights.setdefault(name, torch.randn(shape, generator=generator))

    x = torch.randn(1, 5, 8, generator=generator)
    plain = moe.SparseMoe(config, "moe", load, Numerics(torch.float32))  # type: ignore[arg-type]
    y, trace = plain(x)
    assert trace.experts.tolist() == [[[0, 1]] * 5]
    seen = []

    def fused(x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        seen.append(experts)
        return plain._run_experts(x, experts, weights)

    grouped = moe.SparseMoe(config, "moe", load, Numerics(torch.float32))  # type: ignore[arg-type]
    grouped.grouped = fused  # type: ignore[assignment]
    assert torch.equal(grouped(x)[0], y) and torch.equal(seen[0], trace.experts[0])
    monkeypatch.setattr(moe, "top_experts", lambda logits, k: logits.flip(-1).topk(k).indices)
    assert grouped(x)[1].experts.max() < 6 and not torch.equal(grouped(x)[0], y)  # other experts, another layer


def test_without_ties_transformers_chooses_the_same() -> None:
    modelling = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    config = SimpleNamespace(num_experts_per_tok=10, num_experts=64, norm_topk_prob=True, hidden_size=64)
    router = modelling.Qwen3NextTopKRouter(config)
    router.weight.data = torch.eye(64)
    logits = torch.randn(300, 64, generator=torch.Generator().manual_seed(0))
    assert all(len(set(row)) == 64 for row in logits.tolist())
    _, weights, experts = router(logits)
    ours = route(logits, 10, True)
    assert torch.equal(ours.experts, experts)
    torch.testing.assert_close(ours.weights, weights, rtol=1e-6, atol=0)

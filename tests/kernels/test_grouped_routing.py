"""The layout of rows by expert: both plain forms agree, and the bound on blocks is tight."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from qconvert_kernels.grouped.routing import Layout, layout, most_blocks, naive_layout


def assert_same(got: Layout, want: Layout) -> None:
    for name, found, expected in zip(Layout._fields, got, want, strict=True):
        assert found.dtype == expected.dtype and torch.equal(found, expected), name


def assert_sound(made: Layout, experts: Tensor, num_experts: int, tile: int) -> None:
    """Straight from the description: every pair once, in a block of its expert, rising; and nothing else."""
    flat = experts.flatten()
    rows = made.pairs.view(-1, tile)
    seen = []
    for expert, row in zip(made.experts.tolist(), rows, strict=True):
        real = row[row < len(flat)]
        assert torch.equal(row[: len(real)], real), "padding stands behind the pairs of a block"
        assert bool((flat[real.long()] == expert).all()) and (len(real) > 0) == (expert >= 0)
        seen += real.tolist()
    valid = [pair for pair, expert in enumerate(flat.tolist()) if 0 <= expert < num_experts]
    assert sorted(seen) == valid
    assert seen == sorted(valid, key=lambda pair: (int(flat[pair]), pair))
    assert int(made.distinct) == len({int(flat[pair]) for pair in valid})
    assert made.tile == (tile if len(rows) else 0)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    tokens=st.sampled_from([0, 1, 2, 7, 40]),
    slots=st.integers(1, 4),
    num_experts=st.sampled_from([1, 3, 16, 100]),
    tile=st.sampled_from([1, 4, 16]),
    lowest=st.sampled_from([0, -1]),
    dtype=st.sampled_from([torch.int32, torch.int64]),
    seed=st.integers(0, 1000),
)
def test_layout(
    tokens: int, slots: int, num_experts: int, tile: int, lowest: int, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    experts = torch.randint(lowest, num_experts - lowest, (tokens, slots), generator=generator).to(dtype)
    want = naive_layout(experts, num_experts, tile)
    assert_sound(want, experts, num_experts, tile)
    assert_same(layout(experts, num_experts, tile), want)
    assert len(want.experts) == most_blocks(experts.numel(), num_experts, tile)


@pytest.mark.parametrize("expert", [0, 5, 7])
def test_all_tokens_to_one_expert(expert: int) -> None:
    experts = torch.full((33, 1), expert)
    made = layout(experts, 8, 16)
    assert_same(made, naive_layout(experts, 8, 16))
    assert made.experts.tolist() == [expert] * 3 + [-1] * 6 and int(made.distinct) == 1
    assert made.pairs[:33].tolist() == list(range(33)) and bool((made.pairs[33:] == 33).all())


def test_the_bound_on_blocks_is_attained_and_never_passed() -> None:
    for pairs in range(1, 8):
        for experts in range(1, 5):
            for tile in (1, 2, 3):
                counts = _splits(pairs, experts)
                most = max(sum(-(-count // tile) for count in split) for split in counts)
                assert most_blocks(pairs, experts, tile) == most


def _splits(total: int, parts: int) -> list[list[int]]:
    if parts == 1:
        return [[total]]
    return [[first, *rest] for first in range(total + 1) for rest in _splits(total - first, parts - 1)]


def test_layout_needs_nothing_from_the_device() -> None:
    """On the meta device any step that needs a value fails, as it would stop a CUDA graph from being captured."""
    made = layout(torch.empty(64, 10, dtype=torch.int64, device="meta"), 512, 16)
    assert made.pairs.shape == (16 * most_blocks(640, 512, 16),)
    with pytest.raises((NotImplementedError, RuntimeError)):
        naive_layout(torch.empty(64, 10, dtype=torch.int64, device="meta"), 512, 16)

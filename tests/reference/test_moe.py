"""The experts of a single token, run without sorting, beside the general way; and threads for single tokens."""

from dataclasses import replace

import pytest
import torch

from qconvert_reference.linear import Numerics
from qconvert_reference.moe import SparseMoe
from qconvert_reference.threads import LARGE, single_tokens
from tests.reference.conftest import BuildModel


@pytest.mark.parametrize("numerics", [Numerics(torch.float32), Numerics(), Numerics(accumulation="split")])
def test_one_token_goes_to_its_experts_in_the_same_order(build_model: BuildModel, numerics: Numerics) -> None:
    moe = build_model(numerics).layers[0].mlp
    assert isinstance(moe, SparseMoe) and moe.top_k > 1
    for seed in range(5):
        x = torch.randn(1, 1, 128, generator=torch.Generator().manual_seed(seed)).to(numerics.compute_dtype)
        routed, trace = moe(x)
        experts, weights = trace.experts[0], trace.weights[0]
        assert torch.equal(moe._run_one(x[0], experts, weights), moe._run_experts(x[0], experts, weights))
        assert routed.shape == x.shape


def test_a_loop_over_single_tokens_has_one_thread_in_a_small_model(build_model: BuildModel) -> None:
    config, before = build_model().config, torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(KeyError), single_tokens(config):
            assert torch.get_num_threads() == 1
            raise KeyError
        assert torch.get_num_threads() == 2
        with single_tokens(replace(config, hidden_size=int(LARGE**0.5))):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)

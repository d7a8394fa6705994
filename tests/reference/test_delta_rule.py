"""The two forms of the delta rule agree, in one piece and in several, and neither overflows or loses a repeated key."""

import pytest
import torch
from torch import Tensor

from qconvert_reference.delta_rule import chunked_delta_rule, recurrent_delta_rule
from qconvert_reference.gated_delta_net import causal_conv
from qconvert_reference.norm import l2_norm


def inputs(tokens: int, decay: float = 0.1, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k = (l2_norm(torch.randn(2, tokens, 2, 16, generator=generator)) for _ in range(2))
    v = torch.randn(2, tokens, 6, 24, generator=generator)
    g = -decay * torch.rand(2, tokens, 6, generator=generator)
    return q * 16**-0.5, k, v, g, torch.rand(2, tokens, 6, generator=generator)


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("decay", [0.001, 0.1, 50.0])
def test_chunked_equals_recurrent(tokens: int, decay: float) -> None:
    out, state = recurrent_delta_rule(*inputs(tokens, decay))
    chunked_out, chunked_state = chunked_delta_rule(*inputs(tokens, decay))
    # Sums of at most 200 products of order one, in another order: a few hundred roundings of 2^-24.
    torch.testing.assert_close(chunked_out, out, rtol=0, atol=300 * 2**-24)
    torch.testing.assert_close(chunked_state, state, rtol=0, atol=300 * 2**-24)


def test_pieces_equal_the_whole() -> None:
    whole, end = chunked_delta_rule(*inputs(200))
    state, outs = None, []
    for start, stop in ((0, 70), (70, 75), (75, 200)):
        rule = recurrent_delta_rule if stop - start < 8 else chunked_delta_rule
        out, state = rule(*(x[:, start:stop] for x in inputs(200)), state)
        outs.append(out)
    torch.testing.assert_close(torch.cat(outs, 1), whole, rtol=0, atol=300 * 2**-24)
    torch.testing.assert_close(state, end, rtol=0, atol=300 * 2**-24)


def test_repeated_keys_stay_exact() -> None:
    """(I + A)^-1 by powers of A would be lost here: with equal keys, no decay, full strength its terms reach 2^60."""
    q, k, v, g, beta = inputs(128)
    k, g, beta = k[:, :1].expand_as(k), torch.zeros_like(g), torch.ones_like(beta)
    out, _ = recurrent_delta_rule(q, k, v, g, beta)
    chunked, _ = chunked_delta_rule(q, k, v, g, beta)
    torch.testing.assert_close(chunked, out, rtol=0, atol=300 * 2**-24)


def test_strong_decay_does_not_overflow() -> None:
    """e^(G_i - G_j) above the diagonal would be e^(64 * 50)."""
    q, k, v, g, beta = inputs(128)
    out, state = chunked_delta_rule(q, k, v, torch.full_like(g, -50.0), beta)
    assert out.isfinite().all() and state.isfinite().all()


def test_convolution_equals_torch_and_continues() -> None:
    x, weight = torch.randn(2, 20, 6), torch.randn(6, 1, 4)
    expected = torch.nn.functional.conv1d(torch.nn.functional.pad(x.mT, (3, 0)), weight, groups=6).mT
    whole, _ = causal_conv(x, weight)
    torch.testing.assert_close(whole, torch.nn.functional.silu(expected))
    first, kept = causal_conv(x[:, :2], weight)  # shorter than the kernel
    second, _ = causal_conv(x[:, 2:], weight, kept)
    torch.testing.assert_close(torch.cat((first, second), 1), whole)

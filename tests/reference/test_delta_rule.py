"""The two forms of the delta rule agree, in one piece and in several, and neither overflows or loses a repeated key."""

import pytest
import torch
from torch import Tensor

from qconvert_reference import delta_rule
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


def test_heads_that_forget_at_once_make_no_subnormal_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between e^-87 and e^-103 fp32 is subnormal: exact enough, and a hundred times slower to multiply."""
    faded = delta_rule._faded(torch.linspace(-120.0, 0.0, 10_001))
    assert not ((faded > 0) & (faded < torch.finfo(torch.float32).tiny)).any() and faded[-1] == 1
    assert float(faded[faded > 0].min()) < 2.0**-56  # what is dropped is far below fp32's rounding
    shares: dict[float, float] = {}
    for gone, most in ((delta_rule.LEAST, 0.001), (float("-inf"), 1.0)):  # 0.08 where nothing is dropped
        monkeypatch.setattr(delta_rule, "LEAST", gone)
        shares[gone] = _subnormal_share(monkeypatch)
        assert shares[gone] < most
    assert shares[float("-inf")] > 0.01


def _subnormal_share(monkeypatch: pytest.MonkeyPatch) -> float:
    """Of the numbers that the loop over chunks multiplies, for a decay of e^-3 a token."""
    multiplied: list[Tensor] = []
    product = torch.baddbmm
    with monkeypatch.context() as patched:
        patched.setattr(torch, "baddbmm", lambda *x, **how: multiplied.extend(x) or product(*x, **how))
        q, k, v, g, beta = inputs(200)
        chunked_delta_rule(q, k, v, torch.full_like(g, -3.0), beta)
    numbers = torch.cat([x.abs().flatten() for x in multiplied])
    return float(((numbers > 0) & (numbers < torch.finfo(torch.float32).tiny)).float().mean())


@pytest.mark.parametrize("tokens", [1, 5, 8])
def test_few_tokens_are_convolved_like_many(tokens: int) -> None:
    x, weight, before = torch.randn(2, 20, 6), torch.randn(6, 1, 4), torch.randn(2, 3, 6)
    whole, _ = causal_conv(x, weight, before)
    few, seen = causal_conv(x[:, :tokens], weight, before)
    torch.testing.assert_close(few, whole[:, :tokens], rtol=1e-5, atol=1e-6)
    assert torch.equal(seen, torch.cat((before, x[:, :tokens]), 1)[:, tokens:])

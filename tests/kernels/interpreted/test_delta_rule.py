"""The gated delta rule, recurrent and chunked, against its naive form in fp64, and that against the reference."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need triton")

from qconvert_kernels import delta_rule
from qconvert_kernels.delta_rule import RECURRENT_LIMIT, gated_delta_rule, naive
from qconvert_kernels.errors import BadInput
from qconvert_reference.delta_rule import chunked_delta_rule, recurrent_delta_rule
from qconvert_reference.norm import l2_norm

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def inputs(
    tokens: int, *, batch: int = 1, decay: float = 0.1, key_dim: int = 24, value_dim: int = 40, positive: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Inputs:  # fmt: skip
    """Two value heads for each of one or two key heads"""
    generator, key_heads = torch.Generator().manual_seed(0), 2 if batch > 1 else 1
    q, k = torch.randn(2, batch, tokens, key_heads, key_dim, generator=generator)
    v = torch.randn(batch, tokens, 2 * key_heads, value_dim, generator=generator)
    g = -decay * torch.rand(batch, tokens, 2 * key_heads, generator=generator)
    beta = torch.rand(batch, tokens, 2 * key_heads, generator=generator)
    if positive:
        q, k, v = q.abs(), k.abs(), v.abs()
    return q.to(dtype), k.to(dtype), v.to(dtype), g, beta


def state_of(of: Inputs) -> Tensor:
    batch, _, heads, value_dim = of[2].shape
    return torch.randn(batch, heads, of[1].shape[3], value_dim, generator=torch.Generator().manual_seed(5))


def assert_close(got: tuple[Tensor, Tensor], of: Inputs, state: Tensor | None = None) -> None:
    """Against fp64. An error E of the state goes on as e^g (I - b k k^T) E, no longer than E: errors only add up.

    A token adds those of S^T k (dk products), of its place in the chunk (at most 64) and a few more, each 2^-24 of the
    longest v and the first state. Errors of T tokens have random signs: sqrt(T) times that.
    """
    want = naive.gated_delta_rule(*of, state, dtype=torch.float64)
    size = float(of[2].double().norm(dim=-1).max()) + (0.0 if state is None else float(state.double().norm(2).max()))
    allowed = of[2].shape[1] ** 0.5 * (of[1].shape[3] + 64) * 2.0**-24 * size
    y, end = (x.double() for x in got)
    rounding = 2.0**-8 * (want[0].abs() + allowed) if got[0].dtype == torch.bfloat16 else 0.0
    assert bool(((y - want[0]).abs() <= allowed + rounding).all()), float((y - want[0]).abs().max() / allowed)
    assert bool(((end - want[1]).abs() <= allowed).all()), float((end - want[1]).abs().max() / allowed)


@pytest.mark.parametrize("tokens", [1, 7, RECURRENT_LIMIT, RECURRENT_LIMIT + 1, 64, 129])
def test_lengths(tokens: int) -> None:
    of = inputs(tokens)
    assert_close(gated_delta_rule(*of), of)


@pytest.mark.parametrize("tokens", [3, 40])
def test_batches_heads_states_and_bf16(tokens: int) -> None:
    of = inputs(tokens, batch=2, dtype=torch.bfloat16, positive=True)
    state = state_of(of)
    before = state.clone()
    y, end = gated_delta_rule(*of, state)
    assert y.dtype == torch.bfloat16 and torch.equal(state, before)
    assert_close((y, end), of, state)


def test_pieces_equal_the_whole() -> None:
    """Chunked, recurrent, chunked again, each from the state before."""
    of, state, pieces = inputs(100), None, []
    for start, stop in ((0, 70), (70, 75), (75, 100)):
        y, state = gated_delta_rule(*(x[:, start:stop] for x in of), state)
        pieces.append(y)
    assert_close((torch.cat(pieces, 1), state), of)


def test_long_inputs_go_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    of, taken, chunked = inputs(140, batch=2), [], delta_rule._chunked
    monkeypatch.setattr(delta_rule, "MOST_TOKENS", 128)
    monkeypatch.setattr(delta_rule, "_chunked", lambda *a: taken.append(a[1].shape[1]) or chunked(*a))
    assert_close(gated_delta_rule(*of), of)
    assert taken == [64, 64]  # of 140; the last 12 one after the other


@pytest.mark.parametrize("tokens", [8, 70])
def test_repeated_keys_and_strong_decay(tokens: int) -> None:
    """Where powers of A would be lost, and where e^(G_i - G_j) above the diagonal would overflow."""
    q, k, v, g, beta = inputs(tokens)
    same = k[:, :1].expand_as(k)
    of = q, same, v, torch.zeros_like(g), torch.ones_like(beta)
    assert_close(gated_delta_rule(*of), of)
    of = q, k, v, torch.full_like(g, -50.0), beta
    assert_close(gated_delta_rule(*of), of)


def test_true_head_sizes() -> None:
    of = inputs(65, key_dim=128, value_dim=128)
    assert_close(gated_delta_rule(*of), of)


def test_no_tokens() -> None:
    of = inputs(0)
    state = state_of(of)
    y, end = gated_delta_rule(*of, state)
    assert y.shape == of[2].shape and torch.equal(end, state)


@pytest.mark.parametrize("rule", [recurrent_delta_rule, chunked_delta_rule])
def test_naive_equals_the_reference(rule: object) -> None:
    q, k, v, g, beta = inputs(50, batch=2)
    want = rule(l2_norm(q) * q.shape[-1] ** -0.5, l2_norm(k), v, g, beta)
    for got, expected in zip(naive.gated_delta_rule(q, k, v, g, beta), want, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=300 * 2.0**-24)


@pytest.mark.parametrize(
    "fault, tokens",
    [("length", 5), ("norm", 40), ("beta", 40), ("beta", 5), ("decay", 40), ("decay", 5), ("heads", 40)],
)
def test_faults_leave_the_bound(fault: str, tokens: int) -> None:
    q, k, v, g, beta = of = inputs(tokens, batch=2)
    if fault == "length":
        y, end = gated_delta_rule(q * 2, k, v, g, beta)
        assert_close((y, end), of)  # the norm takes the length away
        with pytest.raises(AssertionError):
            assert_close((y * 2, end), of)
        return
    if fault == "norm":
        k = torch.cat((k[..., :-1], torch.zeros_like(k[..., -1:])), -1)
    elif fault == "beta":
        beta = beta * (1 + 2.0**-10)
    elif fault == "decay":
        g = g + 2.0**-10
    elif fault == "heads":
        k = k.flip(2)
    with pytest.raises(AssertionError):
        assert_close(gated_delta_rule(q, k, v, g, beta), of)


def test_what_does_not_fit_is_refused() -> None:
    q, k, v, g, beta = inputs(5)
    with pytest.raises(BadInput, match="g: expected"):
        gated_delta_rule(q, k, v, g.bfloat16(), beta)
    with pytest.raises(BadInput, match="expected a multiple of 2 heads, found 3"):
        wide = q.repeat(1, 1, 2, 1)
        gated_delta_rule(wide, wide, torch.cat((v, v[:, :, :1]), 2), g, beta)
    with pytest.raises(BadInput, match="heads of 1 to 256"):
        wide = torch.zeros(1, 5, 1, 300)
        gated_delta_rule(wide, wide, v, g, beta)

"""GPTQ against a plain column-by-column version, its limits, and what it does with few rows."""

import functools
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from qconvert.schemes import QuantizedWeight, get_scheme
from qconvert.schemes.int4 import Int4, gptq, moved
from qconvert.schemes.int4.gptq import Moments
from tests.schemes.test_int4 import gaussian

GROUPS = (32, 64, 128)


def scheme_of(group: int, asymmetric: bool = False) -> Int4:
    found = get_scheme(f"int4-g{group}", method="gptq", asymmetric=asymmetric)
    assert isinstance(found, Int4)
    return found


@functools.cache
def inputs(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Correlated inputs of unequal size."""
    generator = torch.Generator().manual_seed(seed)
    draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    return (draw(rows, columns) + draw(rows, 8) @ draw(8, columns)) * torch.exp2(draw(columns))


def hessian(x: Tensor) -> Tensor:
    return x.T @ x / len(x)


def naive(weight: Tensor, start: QuantizedWeight, hessian: Tensor, group: int) -> Tensor:
    """Codes as the paper's first algorithm finds them: one column after the other, the inverse shrinking with each."""
    most = start.scheme.most_moved  # type: ignore[attr-defined]
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian), dtype=torch.float64)
    left, codes = weight.double().clone(), start.codes.clone()
    rest = hessian.diagonal().argsort(descending=True, stable=True).tolist()
    while rest:
        k = rest[0]
        inverse = torch.linalg.inv(damped[rest][:, rest])
        scale = start.scales[:, k // group].double()
        zero = 0 if start.zeros is None else start.zeros[:, k // group].double()
        code = (left[:, k] / scale + zero).round()
        code = code.clamp(start.codes[:, k].double() - most, start.codes[:, k].double() + most).clamp(-8, 7)
        codes[:, k] = code.to(torch.int8)
        error = left[:, k] - (code - zero) * scale
        left[:, rest] -= error[:, None] * inverse[0][None] / inverse[0, 0]
        rest = rest[1:]
    return codes


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("asymmetric", [False, True])
def test_the_sweep_is_the_naive_one(group: int, asymmetric: bool) -> None:
    """300 inputs: two whole blocks of columns and a part, a last group that is shorter."""
    weight, moments = gaussian(24, 300), hessian(inputs(900, 300))
    scheme = scheme_of(group, asymmetric)
    start = scheme.quantize(weight, moments.diagonal())
    got = gptq.improve(weight, start, gptq.factorise(moments))
    assert torch.equal(got.codes, naive(weight, start, moments, group))
    assert torch.equal(got.scales, start.scales)
    assert not torch.equal(got.codes, start.codes)


@pytest.mark.parametrize("asymmetric", [False, True])
def test_unrelated_inputs_mean_plain_rounding(asymmetric: bool) -> None:
    weight, scheme = gaussian(40, 300), scheme_of(64, asymmetric)
    start = scheme.quantize(weight, torch.ones(300))
    got = gptq.improve(weight, start, gptq.factorise(torch.eye(300, dtype=torch.float64)))
    assert torch.equal(got.codes, start.codes)


@pytest.mark.parametrize("group", GROUPS)
def test_outputs_are_better_and_weights_within_the_bound(group: int) -> None:
    weight, (x, fresh) = gaussian(64, 256), inputs(4000, 256).chunk(2)
    scheme = scheme_of(group)
    moments = hessian(x)
    start = scheme.quantize(weight, moments.diagonal())
    got = gptq.improve(weight, start, gptq.factorise(moments))
    assert gptq.output_error(weight, got, moments) < 0.7 * gptq.output_error(weight, start, moments)
    outputs = [(numbers.dequantize(torch.float32).double() - weight.double()) @ fresh.T for numbers in (got, start)]
    assert float(outputs[0].norm()) < 0.85 * float(outputs[1].norm())
    assert float(outputs[0].square().sum() / len(fresh)) == pytest.approx(
        gptq.output_error(weight, got, hessian(fresh)), rel=1e-9
    )
    error = (got.dequantize(torch.float32) - weight.float()).abs()
    assert bool((error <= scheme.bound(weight, got.scales)).all())
    assert not bool((error <= replace(scheme, method="mse").bound(weight, got.scales)).all())
    assert int((got.codes - start.codes).abs().max()) == scheme.most_moved
    assert scheme.doubts(got.codes, got.scales) == []


def test_blocks_and_slices_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, moments = gaussian(64, 300), hessian(inputs(900, 300))
    start, factor = scheme_of(32).quantize(weight, moments.diagonal()), gptq.factorise(moments)
    whole = gptq.improve(weight, start, factor)
    assert torch.equal(gptq.improve(weight[32:], start.rows(32, 64), factor).codes, whole.codes[32:])
    for block in (1, 37, 1000):
        monkeypatch.setattr(gptq, "BLOCK", block)
        assert torch.equal(gptq.improve(weight, start, factor).codes, whole.codes)


def test_damping_grows_until_the_factor_exists() -> None:
    ones = torch.ones(64, 64, dtype=torch.float64)  # rank one
    assert gptq.factorise(ones).damping == 0.01
    indefinite = ones - 0.05 * torch.eye(64, dtype=torch.float64)
    assert gptq.factorise(indefinite).damping == 0.1
    for bad in (torch.zeros(8, 8), torch.full((8, 8), torch.nan), -torch.eye(8), torch.eye(8) * torch.inf):
        with pytest.raises(gptq.NotFactorised):
            gptq.factorise(bad.double())
    with pytest.raises(gptq.NotFactorised, match="not positive definite"):
        gptq.factorise(torch.eye(8, dtype=torch.float64) + 9 * (1 - torch.eye(8, dtype=torch.float64)))


def test_inputs_that_are_never_active_do_no_harm() -> None:
    x = inputs(900, 256).clone()
    x[:, 10:50] = 0
    weight, moments = gaussian(32, 256), hessian(x)
    scheme = scheme_of(32)
    start = scheme.quantize(weight, moments.diagonal())
    got = gptq.improve(weight, start, gptq.factorise(moments))
    assert torch.equal(got.codes[:, 10:50], start.codes[:, 10:50])


def test_few_rows_are_mixed_with_the_layers_and_hardly_trusted() -> None:
    own, shared = hessian(inputs(20, 256)), hessian(inputs(4096, 256, seed=3))
    prior = gptq.PRIOR_TOKENS
    atol = 8 * 2.0**-53 * float(torch.maximum(own.abs().max(), shared.abs().max()))  # four roundings on either side
    for tokens in (0, 20, 5000):
        moments = Moments(own, tokens, shared, 4096)
        weight = tokens / (tokens + prior)
        assert torch.allclose(gptq.mixed(moments), weight * own + (1 - weight) * shared, rtol=0, atol=atol)
        diagonal = Moments(own.diagonal(), tokens, shared.diagonal(), 4096)
        assert torch.allclose(gptq.mixed(diagonal), gptq.mixed(moments).diagonal(), rtol=0, atol=atol)
    unseen = gptq.estimate(Moments(torch.zeros_like(own), 0, shared, 4096))
    assert torch.equal(unseen.diagonal(), shared.diagonal())
    assert torch.allclose(unseen[0, 1], shared[0, 1] * 4096 / (4096 + 256), rtol=1e-12)
    alone = gptq.estimate(Moments(own, 20))
    assert torch.equal(alone.diagonal(), own.diagonal()) and torch.allclose(alone[0, 1], own[0, 1] * 20 / 276)


def test_the_noise_of_a_mixture_is_that_of_the_rows_it_counts_as() -> None:
    """Variance of an entry of the mixture = variance of one row's product / rows, by simulation."""
    generator = torch.Generator().manual_seed(5)
    n, m, prior = 30, 400, gptq.PRIOR_TOKENS
    draws = torch.randn(20000, n + m, generator=generator) * torch.randn(20000, n + m, generator=generator)
    mixture = (n * draws[:, :n].mean(1) + prior * draws[:, n:].mean(1)) / (n + prior)
    rows = (n + prior) ** 2 / (n + prior**2 / m)
    assert float(mixture.var()) * rows == pytest.approx(1, rel=0.05)


FAULTS = ["none", "nibbles", "groups", "rows", "doubled", "halved", "sign"]


@pytest.mark.parametrize(
    "fault, asymmetric", [*((fault, kind) for fault in FAULTS for kind in (False, True)), ("zero point", True)]
)
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_codes_of_an_unlimited_sweep_follow_their_weights_and_faults_do_not(
    fault: str, asymmetric: bool, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What other tools write, without our limit and on few rows: accepted as it is, refused when damaged."""
    monkeypatch.setattr(Int4, "most_moved", 16)
    generator = torch.Generator().manual_seed(6)
    weight = gaussian(64, 512) * torch.exp2(spread * torch.randn(64, 4, generator=generator)).repeat_interleave(128, 1)
    moments = hessian(inputs(300, 512))
    start = scheme_of(128, asymmetric).quantize(weight, moments.diagonal())
    got = gptq.improve(weight, start, gptq.factorise(moments))
    assert int((got.codes - start.codes).abs().max()) > 1
    codes, scales, zeros = got.codes, got.scales.clone(), got.zeros
    if fault == "nibbles":
        codes = codes.view(64, -1, 2).flip(-1).reshape(64, 512)
    elif fault == "groups":
        scales = scales.roll(1, dims=1)
    elif fault == "rows":
        scales = scales.roll(1, dims=0)
    elif fault == "doubled":
        scales[17, 2] *= 2
    elif fault == "halved":
        scales[17, 2] /= 2
    elif fault == "sign":
        codes = -codes
    elif fault == "zero point":
        assert zeros is not None
        zeros = zeros + 1
    passed = moved.follows(weight, QuantizedWeight(got.scheme, codes, scales, zeros))
    if fault == "none":
        assert bool(passed.all())
    else:
        assert not bool(passed.all())
        if fault in ("doubled", "halved") and spread < 1:
            assert not bool(passed[17, 256:384].any()) and bool(passed[:17].all())


def test_a_short_last_group_and_groups_of_zeros_follow() -> None:
    weight = gaussian(8, 300)
    weight[3, 128:256] = 0
    got = get_scheme("int4-g128").quantize(weight)
    assert bool(moved.follows(weight, got).all()) and moved.follows(weight, got).shape == (8, 300)

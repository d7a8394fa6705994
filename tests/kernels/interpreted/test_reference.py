"""The reference on the kernels: linear layers, experts and a whole comparison against the torch ones."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from qconvert.quantization import quantize
from qconvert.schemes import get_scheme
from qconvert_evals.compare import compare
from qconvert_evals.speculation import LiveSettings
from qconvert_reference.cache import DeltaState
from qconvert_reference.gated_delta_net import GatedDeltaNet
from qconvert_reference.kernels import KernelProduct, fused_delta_rule
from qconvert_reference.lane import Lane
from qconvert_reference.linear import KernelLinear, Numerics, make_linear, round_activations
from tests.evals.tiny_pair import some_documents, write_tokenizer
from tests.tiny import tiny_config, write_tiny_checkpoint

CASES = [
    ("fp8-block128", {}, "none"),
    ("fp8-block128", {}, "fp8-group128"),
    ("int4-g32", {}, "none"),
    ("int4-g128", {"asymmetric": True}, "none"),
]


@pytest.mark.parametrize("scheme, options, activations", CASES)
def test_linear_layers(scheme: str, options: dict[str, bool], activations: str) -> None:
    """Against fp64 on the same factors: fp32 sums of K products, then half a step of bf16, 2^-8 of the result."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(200, 384, generator=generator).bfloat16()
    x = torch.randn(2, 5, 384, generator=generator).bfloat16()
    numbers = get_scheme(scheme, **options).quantize(weight)
    layer = make_linear(numbers, Numerics(activations=activations, kernels="triton"))  # type: ignore[arg-type]
    assert isinstance(layer, KernelLinear)
    entering = (round_activations(x) if activations != "none" else x).double()
    exact = entering @ numbers.dequantize(torch.float32).double().T
    sizes = entering.abs() @ numbers.dequantize(torch.float32).double().abs().T
    bound = 384 * 2.0**-24 * sizes + 2.0**-8 * exact.abs()
    y = layer(x)
    assert y.dtype == torch.bfloat16 and y.shape == (2, 5, 200)
    assert bool(((y.double() - exact).abs() <= bound).all())


def test_what_no_kernel_computes_stays_in_torch() -> None:
    numbers = get_scheme("int4-g32").quantize(torch.randn(64, 128).bfloat16())
    for numerics in (
        Numerics(torch.float32, kernels="triton"),
        Numerics(activations="fp8-token", kernels="triton"),
        Numerics(accumulation="split", kernels="triton"),
        Numerics(kernels="torch"),
    ):
        assert not isinstance(make_linear(numbers, numerics), KernelLinear)
    assert not isinstance(make_linear(torch.randn(64, 128), Numerics(kernels="triton")), KernelLinear)


@pytest.mark.parametrize("scheme, options, activations", CASES)
def test_experts_together_as_one_by_one(
    scheme: str, options: dict[str, bool], activations: str, tmp_path: Path
) -> None:
    """A whole layer's experts; bf16 between the products differs by a rounding, so the bound is on the norm."""
    config = tiny_config(num_hidden_layers=1, layer_types=["linear_attention"], num_experts=5, num_experts_per_tok=2)
    source = write_tiny_checkpoint(tmp_path / "bf16", config)
    quantize(source, tmp_path / "out", scheme=scheme, **options)  # type: ignore[arg-type]
    numerics = Numerics(activations=activations)  # type: ignore[arg-type]
    torch_lane, lane = (
        Lane.open(name, tmp_path / "out", replace(numerics, kernels=name)) for name in ("torch", "triton")
    )
    one_by_one, together = torch_lane.layer(0).mlp, lane.layer(0).mlp
    assert together.grouped is not None and one_by_one.grouped is None
    x = torch.randn(1, 7, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    wanted, routes = one_by_one(x)
    found, same = together(x)
    assert torch.equal(routes.experts, same.experts)
    error = (found.float() - wanted.float()).norm() / wanted.float().norm()
    assert float(error) < 2.0**-6  # a few roundings to bf16 (2^-9 each) one after the other


def test_the_kernel_sees_any_leading_dimensions() -> None:
    numbers = get_scheme("fp8-block128").quantize(torch.randn(128, 128).bfloat16())
    product, x = KernelProduct(numbers, "none"), torch.randn(2, 3, 128).bfloat16()
    assert torch.equal(product(x).view(6, 128), product(x.view(6, 128)))


@pytest.mark.parametrize("tokens", [3, 70])
def test_a_delta_net_layer_on_the_kernel(tokens: int, tmp_path: Path) -> None:
    """Both rules work in fp32 on the same bf16 projections, in pieces and with a state; then one rounding to bf16."""
    lane = Lane.open("torch", write_tiny_checkpoint(tmp_path), Numerics())
    fused = Lane.open("triton", tmp_path, Numerics(kernels="triton"))
    plain, kernel = lane.layer(0).mixer, fused.layer(0).mixer
    assert isinstance(plain, GatedDeltaNet) and isinstance(kernel, GatedDeltaNet)
    assert plain.fused_rule is None and kernel.fused_rule is not None
    x = torch.randn(2, tokens, 128, generator=torch.Generator().manual_seed(2)).bfloat16()
    states = DeltaState(), DeltaState()
    for piece in (x, x[:, :1], x[:, :5]):
        wanted, found = plain(piece, states[0]), kernel(piece, states[1])
        # An output that lies on a rounding edge of the gated norm may move by a step of 2^-8, others not at all.
        assert float((found.float() - wanted.float()).norm() / wanted.float().norm()) < 2.0**-9
    assert states[0].recurrent is not None and states[1].recurrent is not None
    error = (states[0].recurrent - states[1].recurrent).norm() / states[0].recurrent.norm()
    assert float(error) < 1e-5  # fp32 sums over up to 76 tokens of 2^-24 each, with room for the decay's exponentials


def test_the_noise_lane_and_fp32_stay_on_the_plain_rule() -> None:
    for numerics in (Numerics(torch.float32, kernels="triton"), Numerics(accumulation="split", kernels="triton")):
        assert fused_delta_rule(numerics) is None


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """BF16 and FP8, one layer of each kind. Every token takes every expert: no choice lies on an edge."""
    folder = tmp_path_factory.mktemp("pair")
    layers = {"num_hidden_layers": 2, "full_attention_interval": 2}
    base = write_tiny_checkpoint(folder / "bf16", tiny_config(num_experts=3, num_experts_per_tok=3, **layers), shards=1)
    write_tokenizer(base)
    quantize(base, folder / "fp8")
    return base, folder / "fp8"


def measured(pair: tuple[Path, Path], kernels: str) -> dict[tuple[str, str], float]:
    """Name and slice -> value, of the FP8 lane: two texts of sixteen tokens."""
    results = compare(
        pair[0], {"fp8": pair[1]}, documents=some_documents(1), tokens=32, seq_len=16, draft_tokens=1,
        live=LiveSettings(prompts=0), kernels=kernels,
    )  # fmt: skip
    lane = next(lane for lane in results.lanes if lane.name == "fp8")
    assert lane.numerics["kernels"] == kernels
    return {(m.name, m.slice): m.value for m in results.measurements if m.lane == "fp8" and m.value is not None}


@pytest.fixture(scope="module")
def with_torch(pair: tuple[Path, Path]) -> dict[tuple[str, str], float]:
    return measured(pair, "torch")


def assert_as_measured(found: dict[tuple[str, str], float], wanted: dict[tuple[str, str], float]) -> None:
    """The error of a layer that is fed BF16 states is ||y - base|| / ||base||, so another y moves it by no more than
    y itself: some eight roundings to bf16 one after the other, 2^-9 each. Two layers in a row move by both. Drift of
    the logits is in proportion to that of the last state, and KL to its square."""
    assert found.keys() == wanted.keys()
    rounding = 8 * 2.0**-9
    layers = [key for key in wanted if key[0] == "hidden.relative_error" and key[1].startswith("layer=")]
    assert len(layers) == 4
    for key in layers:
        allowed = rounding if key[1].endswith("feed=local") else 2 * rounding
        assert found[key] == pytest.approx(wanted[key], rel=0, abs=allowed), key
    kl, drift = wanted["logits.kl_mean", "all"], wanted["hidden.relative_error", "layer=1,feed=free"]
    assert found["logits.kl_mean", "all"] ** 0.5 == pytest.approx(kl**0.5, rel=2 * rounding / drift)
    for key in wanted:
        assert not key[0].startswith("weights.") or found[key] == wanted[key], key


@pytest.mark.slow
def test_a_comparison_measures_what_torch_measures(
    pair: tuple[Path, Path], with_torch: dict[tuple[str, str], float]
) -> None:
    assert_as_measured(measured(pair, "triton"), with_torch)


@pytest.mark.slow
def test_a_kernel_that_is_off_by_an_eighth_is_seen(
    pair: tuple[Path, Path], with_torch: dict[tuple[str, str], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = KernelProduct.__call__
    monkeypatch.setattr(KernelProduct, "__call__", lambda self, x: right(self, x) * 1.125)
    with pytest.raises(AssertionError, match="feed=local"):
        assert_as_measured(measured(pair, "triton"), with_torch)

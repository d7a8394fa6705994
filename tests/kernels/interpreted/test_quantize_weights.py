"""Weight quantization in Triton against the naive truth and against the schemes of the core, bit for bit; and a whole
conversion through the kernels."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need triton")

from qconvert.checkpoint import hash_file
from qconvert.quantization import plan_quantize, plan_schemes, quantize, run_plan
from qconvert.quantizers import OnDevice, find_offers
from qconvert.schemes import fused
from qconvert.schemes.fp8_block128 import Fp8Block128
from qconvert.schemes.int4 import Int4
from qconvert.schemes.scheme import add_rows, squared_error
from qconvert_kernels import quantize_weights
from qconvert_kernels.errors import BadInput
from qconvert_kernels.quantize_weights import Quantized, naive
from tests.tiny import tiny_config, write_tiny_checkpoint

FP8 = [Fp8Block128(scales) for scales in ("bf16", "f32", "pow2")]
INT4 = [Int4(*kind) for kind in itertools.product((32, 64, 128), ("bf16", "f32"), ("rtn", "mse"), (False, True))]
BF16_SCALES = [scheme for scheme in INT4 if scheme.group == 128 and scheme.scale_type == "bf16"]
EVERY_BF16 = torch.arange(-0x8000, 0x8000, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
Scheme = Fp8Block128 | Int4


def by_kernel(scheme: Scheme, weight: Tensor) -> Quantized:
    """Through the door that the core uses."""
    offered = quantize_weights.offer(scheme.name, vars(scheme), weight.device)
    assert offered is not None
    return offered.quantize(weight)


def by_truth(scheme: Scheme, weight: Tensor) -> Quantized:
    if isinstance(scheme, Fp8Block128):
        return naive.fp8_block128(weight, scheme.scale_type)
    return naive.int4(weight, scheme.group, scheme.scale_type, scheme.method, asymmetric=scheme.asymmetric)


def assert_same(got: Any, want: Any) -> None:
    for part in ("codes", "scales", "zeros"):
        one, other = getattr(got, part), getattr(want, part)
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype and one.shape == other.shape
            assert torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8)), part


def check(scheme: Scheme, weight: Tensor) -> None:
    got = by_kernel(scheme, weight)
    assert_same(got, by_truth(scheme, weight))
    assert_same(got, scheme.plain(weight))


def check_errors(scheme: Scheme, weight: Tensor) -> None:
    """The sums, in their own order, to the last bit."""
    want = scheme.plain(weight)
    offered = quantize_weights.offer(scheme.name, vars(scheme), weight.device)
    assert offered is not None
    got = offered.squared_errors(weight, want.codes, want.scales, want.zeros)
    truth = naive.squared_errors(weight, Quantized(want.codes, want.scales, want.zeros), scheme.block)
    assert torch.equal(got, truth)
    assert (add_rows(got[0]), add_rows(got[1])) == squared_error(weight, want.dequantize(torch.float32))


@pytest.mark.parametrize("scheme", [*FP8, *(scheme for scheme in INT4 if scheme.scale_type != "f32")], ids=str)
def test_every_kind_of_number(scheme: Scheme) -> None:
    """Ties, one-sided rows, zeros of both signs, subnormal and huge numbers; blocks and groups cut short."""
    weight = fused.sample() if scheme in FP8 else fused.sample()[::2]
    check(scheme, weight)
    check_errors(scheme, weight)


@pytest.mark.parametrize("scheme", [*FP8, *(scheme for scheme in INT4 if scheme.group == 64)], ids=str)
def test_weights_of_fp32(scheme: Scheme) -> None:
    weight = fused.sample()[::3].float() * 1.0001
    check(scheme, weight)
    check(scheme, weight.clamp(-60000, 60000).half()[:, :130])
    check_errors(scheme, weight)


@pytest.mark.parametrize("scheme", [*FP8, *BF16_SCALES], ids=str)
def test_every_bf16_number(scheme: Scheme) -> None:
    """Among strangers; FP8 also among its neighbours, where quotients use all codes."""
    usable = EVERY_BF16[EVERY_BF16.float().abs() <= naive.limit(getattr(scheme, "asymmetric", False))]
    neighbours = torch.nn.functional.pad(usable, (0, -len(usable) % 257)).view(-1, 257)
    if scheme in FP8:
        check(scheme, neighbours)
    order = torch.randperm(neighbours.numel(), generator=torch.Generator().manual_seed(1))
    check(scheme, neighbours.flatten()[order].view(neighbours.shape))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    scheme=st.sampled_from([*INT4, *FP8, *FP8]),
    rows=st.sampled_from([1, 2, 7, 128, 130]),
    columns=st.sampled_from([1, 31, 33, 127, 128, 200]),
    exponent=st.sampled_from([-133, -126, -30, 0, 8, 100]),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    seed=st.integers(0, 2**20),
)
def test_random_weights(scheme: Scheme, rows: int, columns: int, exponent: int, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, kind = torch.randn(rows, columns, generator=generator), torch.randint(0, 5, (rows, 1), generator=generator)
    weight = torch.where(kind == 0, (weight * 8).round() / 2, weight)
    weight = torch.where(kind == 1, weight.abs(), weight)
    weight = torch.where(kind == 2, 0.0, weight)
    check(scheme, (weight * 2.0**exponent).to(dtype))


@pytest.mark.parametrize("scheme", [FP8[0], INT4[0], Int4(64, asymmetric=True)], ids=str)
def test_slices_of_wider_rows(scheme: Scheme) -> None:
    weight = torch.randn(40, 400, generator=torch.Generator().manual_seed(0)).bfloat16()
    check(scheme, weight[3:30, 5:300])


@pytest.mark.parametrize("value", [-float("nan"), float("inf"), -(2.0**127) * 1.01])
@pytest.mark.parametrize("scheme", [*FP8, Int4(64, "bf16", "rtn", True), Int4(32, "f32", "mse", True)], ids=str)
def test_unusable_values_mark_their_scale(scheme: Scheme, value: float) -> None:
    """That one alone: the scales of all others are as they were."""
    weight = torch.randn(130, 140, generator=torch.Generator().manual_seed(0)).bfloat16()
    want = by_kernel(scheme, weight)
    weight[129, 131] = value
    got = by_kernel(scheme, weight)
    rows, columns = scheme.block
    assert got.scales.isnan().nonzero().tolist() == [[129 // rows, 131 // columns]]
    assert by_truth(scheme, weight).scales.isnan().nonzero().tolist() == [[129 // rows, 131 // columns]]
    assert torch.equal(got.scales[~got.scales.isnan()], want.scales[~got.scales.isnan()])


def test_limits_themselves_are_usable() -> None:
    weight = torch.full((1, 32), -(2.0**127)).bfloat16()
    check(Int4(32), weight)
    check(Fp8Block128(), weight)
    check(Int4(32, asymmetric=True), weight / 2)


def test_no_numbers() -> None:
    assert quantize_weights.fp8_block128(torch.zeros(0, 256)).scales.shape == (0, 2)
    assert quantize_weights.int4(torch.zeros(3, 0), 64, asymmetric=True).zeros.shape == (3, 0)  # type: ignore[union-attr]


def test_bad_input_is_named() -> None:
    weight = torch.zeros(2, 128)
    for text, call in (
        ("group: expected one of 32, 64, 128, found 16", lambda: quantize_weights.int4(weight, 16)),
        ("method: expected one of rtn, mse, found gptq", lambda: quantize_weights.int4(weight, 32, method="gptq")),
        ("expected one of bf16, f32, pow2, found f16", lambda: quantize_weights.fp8_block128(weight, "f16")),
        ("contiguous, its stride is 2", lambda: quantize_weights.fp8_block128(torch.zeros(128, 2).T)),
        ("found .* float64", lambda: quantize_weights.fp8_block128(weight.double())),
    ):
        with pytest.raises(BadInput, match=text):
            call()


@pytest.mark.parametrize("scheme", [Int4(128, "bf16", "imatrix"), Int4(32, "f16")], ids=str)
def test_what_is_not_offered(scheme: Int4) -> None:
    assert quantize_weights.offer(scheme.name, vars(scheme), torch.device("cpu")) is None
    assert quantize_weights.offer("mxfp4", {"scale_type": "e8m0"}, torch.device("cpu")) is None


@pytest.mark.parametrize("options", [{"scales": "f32"}, {"scheme": "int4-g128", "method": "rtn"}], ids=str)
def test_a_whole_conversion(options: dict[str, Any], tmp_path: Path) -> None:
    """Found by the entry point, checked on the sample, used by two workers, and the files are those of a CPU."""
    source = write_tiny_checkpoint(tmp_path / "source", tiny_config(num_experts=2, num_hidden_layers=1), mtp=False)
    quantize(source, tmp_path / "cpu", **options)
    plan = plan_quantize(source, tmp_path / "kernels", **options)
    quantizer = OnDevice(torch.device("cpu"), plan_schemes(plan), find_offers())
    for scheme in plan_schemes(plan):
        assert quantizer.offers(scheme)
        quantizer.check(scheme)
    manifest = run_plan(plan, workers=2, quantizer=quantizer)
    assert manifest.run["device"].startswith("cpu, triton ")
    for name in ("model.safetensors", "qconvert_tensors.csv", "config.json"):
        assert hash_file(tmp_path / "kernels" / name) == hash_file(tmp_path / "cpu" / name)

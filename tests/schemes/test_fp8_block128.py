"""FP8 block-128 against its definition: all codes, the format's own grid, ragged shapes, and the edges of fp32."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st

from qconvert.errors import UserError
from qconvert.schemes import UnusableWeight, get_scheme, scheme_names

ALL_CODES = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
FINITE = ALL_CODES[ALL_CODES.float().isfinite()]
SCALES = ("bf16", "f32", "pow2")


def decode(code: int) -> float:
    """e4m3fn by its definition: sign, 4 bits of exponent with bias 7, 3 bits of mantissa, NaN at all ones."""
    sign, exponent, mantissa = -1.0 if code & 0x80 else 1.0, code >> 3 & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def random_weight(rows: int, columns: int, seed: int, spread: float = 1.0) -> torch.Tensor:
    """Heavy-tailed numbers over many magnitudes, as fp32."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, columns, generator=generator)
    return spread * normal * torch.exp2(4 * torch.randn(rows, columns, generator=generator))


def test_names() -> None:
    assert "fp8-block128" in scheme_names()
    with pytest.raises(UserError, match="unknown scheme 'int3'"):
        get_scheme("int3")
    with pytest.raises(UserError, match="unknown type of scales 'e4m3'"):
        get_scheme("fp8-block128", scales="e4m3")


def test_dequantize_knows_all_256_codes() -> None:
    got = get_scheme("fp8-block128").dequantize(ALL_CODES.view(1, 256), torch.ones(1, 2), dtype=torch.float32)
    want = torch.tensor([[decode(code) for code in range(256)]])
    assert torch.equal(got.nan_to_num(nan=12345.0), want.nan_to_num(nan=12345.0))


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("exponent", [-126, -20, 0, 7, 100])
def test_representable_weights_come_back_bit_for_bit(scales: str, exponent: int) -> None:
    """Numbers on the grid under a power of two, with 448 in each block so that the scale is found again."""
    codes = FINITE[torch.randint(0, len(FINITE), (256, 384), generator=torch.Generator().manual_seed(3))]
    codes = codes.view(torch.uint8)
    codes[::128, ::128] = 0x7E
    codes[codes == 0x80] = 0  # a negative zero comes back as zero or negative zero; both are zero
    weight = codes.view(torch.float8_e4m3fn).float() * 2.0**exponent
    got = get_scheme("fp8-block128", scales=scales).quantize(weight)
    assert torch.equal(got.codes.view(torch.uint8), codes)
    assert torch.equal(got.scales.float(), torch.full((2, 3), 2.0**exponent))
    assert torch.equal(got.dequantize(torch.float32), weight)


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(
    rows=st.sampled_from([1, 2, 127, 128, 129, 200, 257]),
    columns=st.sampled_from([1, 3, 127, 128, 129, 300]),
    scales=st.sampled_from(SCALES),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    exponent=st.sampled_from([-140, -126, -30, 0, 8]),
    seed=st.integers(0, 2**20),
)
def test_properties(rows: int, columns: int, scales: str, dtype: torch.dtype, exponent: int, seed: int) -> None:
    scheme = get_scheme("fp8-block128", scales=scales)
    weight = random_weight(rows, columns, seed).clamp(-250, 250).mul(2.0**exponent).to(dtype)
    got = scheme.quantize(weight)
    layout = scheme.layout((rows, columns))
    assert layout["codes"] == ("F8_E4M3", tuple(got.codes.shape))
    assert layout["scales"][1] == tuple(got.scales.shape)
    assert got.shape == (rows, columns)
    assert bool((got.scales.float() >= 2.0**-126).all())
    decoded = got.dequantize(torch.float32)
    assert bool(((decoded - weight.float()).abs() <= scheme.bound(weight, got.scales)).all())
    # Once on the grid, nothing moves any more. (Powers of two: a block whose largest code came out as 224 gets half the
    # scale and twice the codes, which are the same numbers.)
    again = scheme.quantize(decoded)
    assert torch.equal(again.dequantize(torch.float32), decoded)
    if scales != "pow2":
        assert torch.equal(again.codes.float(), got.codes.float())
    # Slices at whole row steps are slices of the whole.
    half = scheme.quantize(weight[: scheme.row_step])
    assert torch.equal(half.codes.float(), got.codes[: scheme.row_step].float())
    assert torch.equal(half.scales, got.scales[:1])


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(512, 256), (300, 200), (64, 129)])
def test_codes_are_the_plain_formula(scales: str, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    """The whole matrix at once, each step a tensor of its own, against the code that works in stripes and in place."""
    weight = random_weight(*shape, seed=11).to(dtype)
    got = get_scheme("fp8-block128", scales=scales).quantize(weight)
    spread = got.scales.float().repeat_interleave(128, 0).repeat_interleave(128, 1)[: shape[0], : shape[1]]
    want = (weight.float() / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert torch.equal(got.codes.view(torch.uint8), want.view(torch.uint8))


@pytest.mark.parametrize("scales", SCALES)
def test_scale_is_the_rounded_quotient(scales: str) -> None:
    weight = random_weight(256, 256, 5)
    amax = weight.view(2, 128, 2, 128).abs().amax((1, 3))
    got = get_scheme("fp8-block128", scales=scales).quantize(weight).scales
    want = {
        "f32": amax / 448,
        "bf16": (amax / 448).bfloat16(),
        "pow2": torch.exp2(torch.ceil(torch.log2(amax / 448))).bfloat16(),
    }[scales]
    assert got.dtype == want.dtype
    assert torch.equal(got, want)


@pytest.mark.parametrize("scales", SCALES)
def test_zero_blocks_have_scale_one(scales: str) -> None:
    weight = torch.zeros(130, 256)
    weight[129, 200] = -3.0
    got = get_scheme("fp8-block128", scales=scales).quantize(weight)
    assert got.scales.float()[[0, 0, 1], [0, 1, 0]].tolist() == [1.0, 1.0, 1.0]
    assert got.scales.float()[1, 1] != 1.0
    assert bool((got.codes.float()[:128] == 0).all())


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("value", [2.0**-149, 1e-40, 2.0**-126, 1e-38, 2.0**127])
def test_smallest_and_largest_weights_stay_finite(scales: str, value: float) -> None:
    scheme = get_scheme("fp8-block128", scales=scales)
    weight = torch.full((3, 5), value)
    got = scheme.quantize(weight)
    decoded = got.dequantize(torch.float32)
    assert bool(decoded.isfinite().all())
    assert bool(((decoded - weight).abs() <= scheme.bound(weight, got.scales)).all())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("place", [(0, 0), (129, 5), (199, 299)])
def test_unusable_values_are_located(value: float, place: tuple[int, int]) -> None:
    weight = torch.ones(200, 300)
    weight[place] = value
    with pytest.raises(UnusableWeight) as caught:
        get_scheme("fp8-block128").quantize(weight)
    assert (caught.value.row, caught.value.column) == place


def test_powers_of_two_survive_requantization() -> None:
    """What engines do at load: dequantize to BF16, quantize with power-of-two scales. Our numbers must not move."""
    scheme = get_scheme("fp8-block128", scales="pow2")
    first = scheme.quantize(random_weight(256, 384, 9).bfloat16())
    again = scheme.quantize(first.dequantize(torch.bfloat16))
    assert torch.equal(first.dequantize(torch.float32), again.dequantize(torch.float32))


@pytest.mark.parametrize("scale_type", [torch.bfloat16, torch.float16, torch.float32])
def test_dequantize_is_one_product_and_one_cast(scale_type: torch.dtype) -> None:
    codes = FINITE[torch.randint(0, len(FINITE), (130, 257), generator=torch.Generator().manual_seed(1))]
    scales = (torch.rand(2, 3, generator=torch.Generator().manual_seed(2)) + 0.01).to(scale_type)
    spread = scales.float().repeat_interleave(128, 0)[:130].repeat_interleave(128, 1)[:, :257]
    want = (codes.float() * spread).bfloat16()
    assert torch.equal(get_scheme("fp8-block128").dequantize(codes, scales), want)

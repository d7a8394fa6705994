"""The kernel's INT4 layout: an exact inverse, the layout as its docstring says, and refusals. No triton needed."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qconvert.schemes import get_scheme
from qconvert_kernels.errors import BadInput
from qconvert_kernels.int4_gemm import naive, repack, unpack


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 140), st.integers(1, 300), st.sampled_from([32, 64, 128]), st.booleans(), st.integers(0, 2**32 - 1)
)
def test_unpack_inverts_repack(rows: int, columns: int, group: int, asymmetric: bool, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-8, 8, (rows, columns), generator=generator, dtype=torch.int8)
    scales = torch.randn(rows, -(-columns // group), generator=generator).bfloat16()
    zeros = torch.randint(-8, 8, scales.shape, generator=generator, dtype=torch.int8) if asymmetric else None
    got = unpack(repack(codes, scales, zeros, group=group))
    assert torch.equal(got[0], codes) and got[0].dtype == torch.int8
    assert torch.equal(got[1], scales) and got[1].dtype == scales.dtype
    assert (got[2] is None) if zeros is None else torch.equal(got[2], zeros)


def test_words_lie_as_documented() -> None:
    codes = torch.randint(-8, 8, (128, 256), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    words = repack(codes, torch.ones(128, 2), group=128).words
    assert words.shape == (2, 2, 64, 32)
    for n, k in [(0, 0), (5, 31), (63, 32), (64, 127), (127, 255), (100, 200)]:
        word = int(words[n // 64, k // 128, n % 64, k % 32]) & 0xFFFF
        assert word >> (4 * (k % 128 // 32)) & 15 == int(codes[n, k]) + 8


def test_padding_counts_for_nothing() -> None:
    packed = repack(torch.full((1, 1), 7, dtype=torch.int8), torch.ones(1, 1), torch.ones(1, 1).char(), group=32)
    assert packed.words.shape == (1, 1, 64, 32) and packed.scales.shape == (4, 64)
    assert packed.scales.count_nonzero() == 1


@pytest.mark.parametrize("scheme", ["int4-g128", "int4-g64", "int4-g32"])
def test_naive_is_the_scheme(scheme: str) -> None:
    """What `qconvert.schemes` writes and what the kernel is compared with are the same numbers."""
    weight = torch.randn(70, 300, generator=torch.Generator().manual_seed(0))
    quantized = get_scheme(scheme).quantize(weight)
    packed = repack(quantized.codes, quantized.scales, quantized.zeros, group=int(scheme.split("-g")[1]))
    assert torch.equal(naive.dequantize(packed), quantized.dequantize(torch.float32))


def test_bad_input_is_named() -> None:
    codes = torch.zeros(2, 64, dtype=torch.int8)
    with pytest.raises(BadInput, match="group: expected one of"):
        repack(codes, torch.ones(2, 4), group=16)
    with pytest.raises(BadInput, match=r"codes: expected -8..7, found 0..9"):
        repack(codes + torch.tensor([[0], [9]]).char(), torch.ones(2, 2), group=32)
    with pytest.raises(BadInput, match=r"scales: expected floats \[2, 2\]"):
        repack(codes, torch.ones(2, 1), group=32)
    with pytest.raises(BadInput, match=r"zeros: expected -8..7"):
        repack(codes, torch.ones(2, 2), torch.full((2, 2), 8).char(), group=32)

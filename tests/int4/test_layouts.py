"""The INT4 layouts bit by bit, as pure functions, against witnesses: compressed-tensors' packer and its AutoAWQ
converter, and plain unpackers in numpy written from the published layouts."""

import functools

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qconvert.formats import UnreadableNumbers, awq, compressed_tensors, gptq
from qconvert.formats.words import INTERLEAVED, pack_words, unpack_words

Numbers = tuple[Tensor, Tensor, Tensor, int]  # codes [N, K], scales and zeros [N, G], group size


def numbers(rows: int, groups: int, group: int, seed: int, lowest_zero: int = -7) -> Numbers:
    generator = torch.Generator().manual_seed(seed)
    draw = functools.partial(torch.randint, generator=generator, dtype=torch.int8)
    codes, zeros = draw(-8, 8, (rows, groups * group)), draw(lowest_zero, 8, (rows, groups))
    return codes, torch.randn(rows, groups, generator=generator).bfloat16(), zeros, group


@st.composite
def any_numbers(draw: st.DrawFn) -> Numbers:
    sizes = (8 * draw(st.integers(1, 5)), draw(st.integers(1, 4)), draw(st.sampled_from([32, 64, 128])))
    return numbers(*sizes, seed=draw(st.integers(0, 2**31)))


def nibbles(words: Tensor, axis: int, order: tuple[int, ...] = tuple(range(8))) -> np.ndarray:
    """Every value by shifting its word, one after the other."""
    array = np.moveaxis(words.numpy().view(np.uint32), axis, -1)
    values = np.zeros((*array.shape[:-1], 8 * array.shape[-1]), dtype=np.int64)
    for position, column in enumerate(order):
        values[..., column::8] = (array >> np.uint32(4 * position)) & 15
    return np.moveaxis(values, -1, axis)


def same(left: Tensor, right: Tensor | np.ndarray) -> bool:
    right = torch.as_tensor(right)
    return left.shape == right.shape and bool((left == right).all())


def test_published_words() -> None:
    """Words as other people print them."""
    assert pack_words(torch.arange(8, dtype=torch.uint8)).item() == 0x76543210
    assert pack_words(torch.arange(8, dtype=torch.uint8), INTERLEAVED).item() == 0x75316420
    codes, scales = torch.zeros(8, 32, dtype=torch.int8), torch.ones(8, 1)
    assert gptq.pack(codes, scales, None, 32)["qzeros"].tolist() == [[0x77777777]]
    assert gptq.pack(codes, scales, None, 32, shift=0)["qzeros"].view(torch.uint8).unique().tolist() == [0x88]
    assert awq.pack(codes, scales, None)["qzeros"].view(torch.uint8).unique().tolist() == [0x88]


@given(any_numbers())
@settings(max_examples=25, deadline=None)
def test_compressed_tensors_packer_agrees(given_numbers: Numbers) -> None:
    codes, scales, zeros, _ = given_numbers
    ours = compressed_tensors.pack(codes, scales, zeros)
    assert torch.equal(ours["packed"], pack_to_int32(codes, 4))
    assert torch.equal(ours["zeros"], pack_to_int32(zeros, 4, packed_dim=0))
    assert torch.equal(ours["shape"], torch.tensor(codes.shape))
    assert torch.equal(unpack_from_int32(ours["packed"], 4, codes.shape), codes)


@pytest.mark.parametrize("rows", [1, 3, 12])
def test_rows_that_fill_no_word(rows: int) -> None:
    """Zero points are packed along the rows; compressed-tensors rounds up."""
    codes, scales, zeros, _ = numbers(rows, 2, 32, seed=rows)
    ours = compressed_tensors.pack(codes, scales, zeros)
    assert torch.equal(ours["zeros"], pack_to_int32(zeros, 4, packed_dim=0))
    back = compressed_tensors.unpack(ours["packed"], ours["scales"], ours["shape"], ours["zeros"])
    assert back[2] is not None
    assert torch.equal(back[0], codes) and torch.equal(back[2], zeros)


@given(any_numbers())
@settings(max_examples=25, deadline=None)
def test_awq_converter_of_compressed_tensors_agrees(given_numbers: Numbers) -> None:
    codes, scales, zeros, _ = given_numbers
    parts = awq.pack(codes, scales, zeros)
    theirs = AutoAWQConverter()._convert_gemm_module(parts["qweight"], parts["scales"], parts["qzeros"])
    assert all(torch.equal(left, right) for left, right in zip(theirs, (codes, scales, zeros), strict=True))
    assert same(codes.T + 8, nibbles(parts["qweight"], 1, INTERLEAVED))
    assert all(torch.equal(*pair) for pair in zip(awq.unpack(**parts), (codes, scales, zeros), strict=True))


@given(any_numbers(), st.sampled_from([0, 1]))
@settings(max_examples=25, deadline=None)
def test_gptq_by_a_plain_unpacker(given_numbers: Numbers, shift: int) -> None:
    codes, scales, zeros, group = given_numbers
    parts = gptq.pack(codes, scales, zeros, group, shift=shift)
    values, points = nibbles(parts["qweight"], 0), nibbles(parts["qzeros"], 1)  # [K, N], [G, N]
    of_input = parts["g_idx"].numpy()
    theirs = (values - (points + shift)[of_input]) * parts["scales"].float().numpy()[of_input]
    ours = (codes - zeros.repeat_interleave(group, 1)).float() * scales.float().repeat_interleave(group, 1)
    assert same(ours, theirs.T.astype(np.float32))
    back = gptq.unpack(**parts, group_size=group, shift=shift)
    assert all(torch.equal(*pair) for pair in zip(back, (codes, scales, zeros), strict=True))


@given(any_numbers())
@settings(max_examples=25, deadline=None)
def test_round_trip_through_all_layouts(given_numbers: Numbers) -> None:
    *now, group = given_numbers
    first = compressed_tensors.pack(*now)
    now = compressed_tensors.unpack(first["packed"], first["scales"], first["shape"], first["zeros"])
    now = gptq.unpack(**gptq.pack(*now, group), group_size=group)
    now = awq.unpack(**awq.pack(*now))
    last = compressed_tensors.pack(*now)
    assert all(torch.equal(first[part], last[part]) for part in first)


def test_gptq_is_the_transpose_of_compressed_tensors() -> None:
    codes, scales, zeros, group = numbers(16, 2, 32, seed=1)
    assert torch.equal(
        gptq.pack(codes, scales, zeros, group)["qweight"].T, compressed_tensors.pack(codes, scales, zeros)["packed"]
    )


def test_what_gptq_version_1_cannot_hold() -> None:
    codes, scales, zeros, group = numbers(8, 2, 32, seed=2)
    zeros[3, 1] = -8
    with pytest.raises(UnreadableNumbers, match="a zero point of 0 has no place"):
        gptq.pack(codes, scales, zeros, group)
    parts = gptq.pack(codes, scales, zeros, group, shift=0)
    assert torch.equal(gptq.unpack(**parts, group_size=group, shift=0)[2], zeros)
    parts["g_idx"] = parts["g_idx"].flip(0)
    with pytest.raises(UnreadableNumbers, match="not in order"):
        gptq.unpack(**parts, group_size=group, shift=0)


@given(st.integers(1, 40), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_words_hold_any_length(length: int, seed: int) -> None:
    values = torch.randint(0, 16, (3, length), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(unpack_words(pack_words(values), length), values)

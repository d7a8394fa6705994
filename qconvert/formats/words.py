"""Eight 4-bit integers to one int32 word, the brick of every INT4 file format.

    word = sum over i of  u[order[i]] << 4 i        u = q + 8 in 0..15 for a signed q in -8..7

Natural order puts the first value into the lowest four bits: -8..-1 make 0x76543210. AWQ interleaves by INTERLEAVED:
0..7 there stand for columns 0, 2, 4, 6, 1, 3, 5, 7. Words are little-endian in a file, and two values a byte in it.
"""

import torch
from torch import Tensor

NATURAL = (0, 1, 2, 3, 4, 5, 6, 7)
INTERLEAVED = (0, 2, 4, 6, 1, 3, 5, 7)
PER_WORD = 8


def pack_words(values: Tensor, order: tuple[int, ...] = NATURAL) -> Tensor:
    """Unsigned values 0..15, uint8 [..., L], to words int32 [..., ceil(L / 8)]; missing values at the end are 0."""
    length = values.shape[-1]
    if length % PER_WORD:
        values = torch.nn.functional.pad(values, (0, -length % PER_WORD))
    if order != NATURAL:
        values = values.reshape(*values.shape[:-1], -1, PER_WORD)[..., list(order)].flatten(-2)
    # Flat first: a dimension of size 1 may have any stride, which forbids a view of another type.
    both = values.flatten().clone().view(torch.int16)  # two values each, the first in the lower byte
    pairs = (both >> 4).bitwise_or_(both).to(torch.uint8)  # the cast keeps the lower byte
    return pairs.view(torch.int32).view(*values.shape[:-1], -1)


def unpack_words(words: Tensor, length: int, order: tuple[int, ...] = NATURAL) -> Tensor:
    """Words int32 [..., ceil(length / 8)] to the unsigned values in them, uint8 [..., length]."""
    pairs = words.flatten().clone().view(torch.uint8).view(*words.shape[:-1], -1)
    values = torch.stack((pairs & 15, pairs >> 4), -1).flatten(-2)
    if order != NATURAL:
        inverse = [order.index(column) for column in range(PER_WORD)]
        values = values.reshape(*values.shape[:-1], -1, PER_WORD)[..., inverse].flatten(-2)
    return values[..., :length]


def unsigned(codes: Tensor) -> Tensor:
    """Signed -8..7, int8, to 0..15, uint8."""
    return (codes + 8).view(torch.uint8)


def signed(values: Tensor) -> Tensor:
    """Unsigned 0..15, uint8, to -8..7, int8."""
    return values.contiguous().view(torch.int8) - 8

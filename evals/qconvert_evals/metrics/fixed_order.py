"""Sums in one written order, so that every processor, number of threads and cut into chunks gives the same bits.

    fold(x_1 .. x_n) = fold(x_1 + x_{m+1}, .., x_{n-m} + x_n, [x_m if n is odd])      m = ceil(n / 2), until one is left

Only elementwise additions in fp64 occur, each rounded as IEEE 754 says; libraries' own sums take the order that fits
their vectors and threads. The error grows with log2(n), as that of any pairwise sum.

    tile_squares       sum of x^2 over tiles; the square of an fp32 number is exact in fp64
    decibels           -20 log10(x) through `decimal`, whose logarithm is rounded correctly; libm's last digit is not
                       the same everywhere

Left out: sums that are exact before they are rounded (`math.fsum`), which Python does for the few numbers a tensor.
"""

from __future__ import annotations

from decimal import Context, Decimal

import torch
import torch.nn.functional as F
from torch import Tensor

_DIGITS = Context(prec=30)


def fold(values: Tensor, dim: int) -> Tensor:
    """Sum over one dimension, which is dropped; fp64 in, fp64 out."""
    while (n := values.shape[dim]) > 1:
        m = (n + 1) // 2
        added = values.narrow(dim, 0, n - m) + values.narrow(dim, m, n - m)
        values = added if n % 2 == 0 else torch.cat([added, values.narrow(dim, n - m, 1)], dim)
    return values.squeeze(dim)


def tile_squares(values: Tensor, tile: tuple[int, int]) -> Tensor:
    """[N, K] fp32 -> sums of squares over tiles, fp64 [n, k]; tiles at the end are filled up with zeros."""
    rows, columns = tile
    padded = F.pad(values, (0, -values.shape[1] % columns, 0, -values.shape[0] % rows))
    squares = padded.double()
    squares.mul_(squares)
    width = padded.shape[1]
    bands = fold(squares.view(-1, rows, width), 1)  # [n, K]
    return fold(bands.view(len(bands), -1, columns), 2)


def decibels(ratio: float) -> float:
    """-20 log10 of a ratio above zero."""
    return float(-20 * _DIGITS.log10(Decimal(ratio)))

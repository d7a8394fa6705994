"""Whether INT4 codes of somebody else's tool can stand for a weight, when that tool may have moved weights first.

GPTQ and learned rounding choose codes that are not the nearest, and how far those lie depends on data that a folder
does not hold. So there is no bound that follows from the numbers, as there is for our own methods (`Int4.bound`).
What holds for every such method: the codes of a group still follow its weights. With c the weight in steps of the
scale, cut to the range of codes, d = code - c, and u, v = code and c, both less the zero point:

    |d| <= MOST everywhere;   |mean of d| <= MEAN,  root mean square of d <= RMS,
    |sum u v / sum u^2 - 1| <= SLOPE                                         in each group

Thresholds: above the most that GPTQ without any limit did on the trained small model, groups of 32 to 128, damping
0.01, on as few as 70 tokens for 256 inputs (7.8, 0.67, 1.9, 0.23), and on random weights whose groups differ in size
by a factor of ten (9.4, 0.53, 2.9, 0.40). Faults leave them: swapped nibbles have a slope of 0, flipped signs of -1, a
doubled scale of 0.5, a zero point off by one a mean of 1. Scales in other places show where neighbours differ in sign
or by half.
"""

import torch
from torch import Tensor

from qconvert.schemes.int4.number_format import Int4
from qconvert.schemes.int4.rules import HIGHEST, LOWEST
from qconvert.schemes.scheme import QuantizedWeight

MOST, MEAN, RMS, SLOPE = 12.0, 0.8, 3.2, 0.45


def follows(weight: Tensor, numbers: QuantizedWeight) -> Tensor:
    """True for all elements [N, K] of groups that pass, and of MOST."""
    scheme = numbers.scheme
    assert isinstance(scheme, Int4)
    columns, group = weight.shape[1], scheme.group
    codes = _tiles(numbers.codes.float(), group)  # [N, G, group]
    scales = numbers.scales.float()[..., None]
    zeros = torch.zeros_like(scales) if numbers.zeros is None else numbers.zeros.float()[..., None]
    inside = _tiles(torch.ones_like(weight, dtype=torch.float32), group)  # a last group may be shorter
    place = (_tiles(weight.float(), group) / scales + zeros).clamp_(LOWEST, HIGHEST)
    moved = (codes - place) * inside
    count = inside.sum(-1)
    u, v = (codes - zeros) * inside, (place - zeros) * inside
    square = u.square().sum(-1)
    slope = torch.where(square > 0, (u * v).sum(-1) / square.clamp_min(1.0), 1.0)
    passed = (moved.sum(-1) / count).abs() <= MEAN
    passed &= moved.square().sum(-1) / count <= RMS**2
    passed &= (slope - 1).abs() <= SLOPE
    return ((moved.abs() <= MOST) & passed[..., None]).flatten(1)[:, :columns]


def _tiles(values: Tensor, group: int) -> Tensor:
    """[N, K] to [N, G, group], the last group filled up with zeros."""
    padded = torch.nn.functional.pad(values, (0, -values.shape[1] % group))
    return padded.view(len(values), -1, group)

"""INT4 weights in the order the kernel reads them, made once at load from any disk format's codes.

    words    int16 [N/64, K/128, 64, 32]   word j of a row holds the numbers k = j, j + 32, j + 64, j + 96 of its 128,
                                           from the lowest four bits up, each as code + 8
    scales   [K/g, N]                      the scale of group k // g
    offsets  bf16 [K/g, N] or None         136 + zero point; None where every zero point is 0

N is filled up to 64 and K to 128 with numbers of scale 0. A tile of 64 x 128 is 4 KiB of memory in one piece. One shift
and one and-or unpack a pair of neighbouring words at once, and each of the four yields 32 numbers of one group, for
g = 32, 64 and 128 alike. The bits of a code + 8 under the exponent of 128 are the bf16 number 136 + code, from which
the offset is subtracted exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from qconvert_kernels.errors import BadInput

ROWS, BLOCK, WORDS = 64, 128, 32
GROUPS = (32, 64, 128)
OFFSET = 136.0  # 128, the base of the bf16 trick, and 8, which makes codes positive


class PackedInt4(NamedTuple):
    """A weight [rows, columns] in groups of `group` along its columns."""

    words: Tensor
    scales: Tensor
    offsets: Tensor | None
    rows: int
    columns: int
    group: int


def repack(codes: Tensor, scales: Tensor, zeros: Tensor | None = None, *, group: int) -> PackedInt4:
    """codes int8 [N, K] in -8..7, scales [N, K/g] float, zeros int8 [N, K/g]; W = (codes - zeros) * scales."""
    _check(codes, scales, zeros, group)
    rows, columns = codes.shape
    fill = (0, -columns % BLOCK, 0, -rows % ROWS)
    nibbles = F.pad(codes.to(torch.int32) + 8, fill, value=8)
    tiles = nibbles.view(-1, ROWS, nibbles.shape[1] // BLOCK, 4, WORDS)  # [N/64, 64, K/128, 4, 32]
    shifts = torch.arange(0, 16, 4, dtype=torch.int32, device=codes.device)[:, None]
    words = (tiles << shifts).sum(-2, dtype=torch.int32).to(torch.int16)  # the four lie apart: a sum is an or
    offsets = None if zeros is None else _by_group(zeros.float() + OFFSET, nibbles.shape, group).bfloat16()
    packed_scales = _by_group(scales, nibbles.shape, group)
    return PackedInt4(words.transpose(1, 2).contiguous(), packed_scales, offsets, rows, columns, group)


def unpack(packed: PackedInt4) -> tuple[Tensor, Tensor, Tensor | None]:
    """The codes, scales and zeros that were packed."""
    rows, columns, groups = packed.rows, packed.columns, -(-packed.columns // packed.group)
    shifts = torch.arange(0, 16, 4, dtype=torch.int32, device=packed.words.device)[:, None]
    nibbles = (packed.words.transpose(1, 2).to(torch.int32)[..., None, :] >> shifts) & 15  # [N/64, 64, K/128, 4, 32]
    codes = (nibbles.reshape(nibbles.shape[0] * ROWS, -1)[:rows, :columns] - 8).to(torch.int8).contiguous()
    scales = packed.scales.T[:rows, :groups].contiguous()
    zeros = None if packed.offsets is None else (packed.offsets.T[:rows, :groups].float() - OFFSET).to(torch.int8)
    return codes, scales, zeros


def _by_group(values: Tensor, padded: torch.Size, group: int) -> Tensor:
    """[N, K/g] filled up with zeros and transposed: [K/g, N]."""
    rows, columns = padded
    return F.pad(values, (0, columns // group - values.shape[1], 0, rows - values.shape[0])).T.contiguous()


def _check(codes: Tensor, scales: Tensor, zeros: Tensor | None, group: int) -> None:
    if group not in GROUPS:
        raise BadInput(f"group: expected one of {GROUPS}, found {group}")
    if codes.dtype != torch.int8 or codes.dim() != 2:
        raise BadInput(f"codes: expected int8 [N, K], found {codes.dtype} {list(codes.shape)}")
    if codes.numel() and (int(codes.min()) < -8 or int(codes.max()) > 7):
        raise BadInput(f"codes: expected -8..7, found {int(codes.min())}..{int(codes.max())}")
    expected = [codes.shape[0], -(-codes.shape[1] // group)]
    if list(scales.shape) != expected or not scales.is_floating_point():
        raise BadInput(f"scales: expected floats {expected}, found {scales.dtype} {list(scales.shape)}")
    if zeros is None:
        return
    if list(zeros.shape) != expected or zeros.dtype != torch.int8:
        raise BadInput(f"zeros: expected int8 {expected}, found {zeros.dtype} {list(zeros.shape)}")
    if zeros.numel() and (int(zeros.min()) < -8 or int(zeros.max()) > 7):
        raise BadInput(f"zeros: expected -8..7, found {int(zeros.min())}..{int(zeros.max())}")

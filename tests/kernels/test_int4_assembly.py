"""The assembly that unpacks INT4 on a GPU, run here, as the interpreter takes another branch and would not see it.

The four instructions it is made of are emulated on 32-bit registers that hold two numbers each.
"""

import re

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="the kernels need triton")

from qconvert_kernels.int4_gemm.few_tokens import UNPACK_0, UNPACK_4, UNPACK_8, UNPACK_12
from qconvert_kernels.int4_gemm.packing import OFFSET

ASSEMBLY = {0: UNPACK_0, 1: UNPACK_4, 2: UNPACK_8, 3: UNPACK_12}
Registers = np.ndarray  # uint32


def bf16_pairs(registers: Registers) -> torch.Tensor:
    return torch.from_numpy(registers.view(np.int16).copy()).view(torch.bfloat16)


def execute(assembly: str, words: Registers, offsets: Registers) -> Registers:
    """$0 after the assembly, with $1 = words and $2 = offsets."""
    held: dict[str, Registers] = {"$1": words, "$2": offsets}

    def value(name: str) -> Registers:
        return held[name] if name in held else np.full_like(words, int(name, 0))

    for line in assembly.strip("{} ").split(";"):
        if not line.strip() or ".reg" in line:
            continue
        operation, *names = re.split(r"[\s,]+", line.strip())
        target, *sources = names
        if operation == "shr.b32":
            held[target] = value(sources[0]) >> value(sources[1])
        elif operation == "mov.b32":
            held[target] = value(sources[0])
        elif operation == "lop3.b32":
            held[target] = lop3(*(value(name) for name in sources[:3]), table=int(sources[3], 0))
        else:
            assert operation == "fma.rn.bf16x2", operation
            a, b, c = (bf16_pairs(value(name)).double() for name in sources)
            held[target] = (a * b + c).bfloat16().view(torch.int16).numpy().view(np.uint32)
    return held["$0"]


def lop3(a: Registers, b: Registers, c: Registers, *, table: int) -> Registers:
    """Bit by bit: the bit of the table at index 4a + 2b + c."""
    found = np.zeros_like(a)
    for index in range(8):
        if table >> index & 1:
            found |= (a if index & 4 else ~a) & (b if index & 2 else ~b) & (c if index & 1 else ~c)
    return found


@pytest.mark.parametrize("part", ASSEMBLY)
@pytest.mark.parametrize("zero", [-8, 0, 7])
def test_every_word(part: int, zero: int) -> None:
    """All 65536 words as the lower and, backwards, as the upper half of a register."""
    words = np.arange(2**16, dtype=np.uint32)
    words |= words[::-1] << np.uint32(16)
    offset = torch.tensor([-(OFFSET + zero)]).bfloat16().view(torch.int16).numpy().view(np.uint16).astype(np.uint32)[0]
    got = bf16_pairs(execute(ASSEMBLY[part].value, words, np.full_like(words, offset << 16 | offset)))
    want = torch.from_numpy((words.view(np.uint16).astype(np.int32) >> (4 * part) & 15) - 8 - zero)
    assert torch.equal(got.float(), want.float())


def test_an_error_in_the_assembly_shows() -> None:
    """The same check with another shift fails: it does look at the code."""
    words = np.arange(2**16, dtype=np.uint32)
    offsets = np.full_like(words, 0xC308C308)  # -136 twice
    right = execute(UNPACK_4.value, words, offsets)
    assert not np.array_equal(right, execute(UNPACK_4.value.replace("$1, 4", "$1, 5"), words, offsets))
    assert not np.array_equal(right, execute(UNPACK_4.value.replace("0xEA", "0xE8"), words, offsets))

"""Compile kernels for an H200 without one, and say what came out: registers, spills, shared memory, instructions.

    python -m qconvert_kernels.compiled                                      compile every case, print the table
    python -m qconvert_kernels.compiled --write kernels/compiled/sm_90a.json renew the committed one

A family of kernels takes part by having a module `cases` with a function `cases()`. Triton's wheel brings ptxas and
cuobjdump, so neither driver nor GPU is needed. What is compiled is what a launch would compile: pointers and sizes
divisible by 16, unit strides constant. Nothing here models time; the table shows when a change of code or of Triton
loses the tensor-core instruction, spills registers or needs more memory than there is.
"""

from __future__ import annotations

import pkgutil
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import qconvert_kernels
from qconvert_kernels.launch import load_kernels
from qconvert_kernels.tiling import SHARED_MEMORY_LIMIT

CAPABILITY = 90  # Triton compiles it as sm_90a
TENSOR_CORE = re.compile(r"(wgmma\.mma_async\.sync\.aligned\.\S+|mma\.sync\.aligned\.m\d+n\d+k\d+\S+)")
INEXACT = re.compile(r"\b(fma\.\S+|\S+\.ftz\S*|\S+\.approx\S*|div\.full\S*)")  # fused, or less than IEEE
MNEMONIC = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)", re.MULTILINE)
WATCHED = ("UTMALDG", "UTMASTG", "LDGSTS", "LDG", "LDS", "LDSM", "STS", "PRMT", "LOP3", "F2FP", "HFMA2", "STL", "LDL")


@dataclass(frozen=True, eq=False)
class Case:
    """One kernel with the types of its arguments (as Triton spells them), its constants, and what is expected of it.

    `factors` is how the tensor-core instruction names the types it multiplies, None for a kernel without products.
    `memory` is the shared memory that was reckoned with; `without` are SASS mnemonics that must not occur.
    """

    name: str
    module: str
    function: str
    types: dict[str, str]
    constants: dict[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 3
    factors: str | None = None
    memory: int = SHARED_MEMORY_LIMIT
    without: tuple[str, ...] = ()
    fp_fusion: bool = True  # whether a product may be fused with an addition, as the launch says


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a case."""

    registers: int
    stack: int  # bytes: spilled registers
    shared_memory: int
    tensor_core: dict[str, int]  # PTX instructions
    instructions: dict[str, int]  # SASS mnemonics worth watching


def all_cases() -> Iterator[Case]:
    """The cases of every family that has some."""
    for family in pkgutil.iter_modules(qconvert_kernels.__path__):
        name = f"qconvert_kernels.{family.name}"
        if family.ispkg and any(
            module.name == "cases" for module in pkgutil.iter_modules(import_module(name).__path__)
        ):
            yield from import_module(f"{name}.cases").cases()


def compile_case(case: Case) -> Compiled:
    """One kernel to a cubin, inspected. Impossible in a process that interprets."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(load_kernels(case.module), case.function)
    signature = {name: case.types.get(name, "constexpr") for name in kernel.arg_names}
    constants = {parameter.name: parameter.default for parameter in kernel.params if parameter.has_default}
    made = triton.compile(
        ASTSource(
            fn=kernel,
            signature=signature,
            constexprs=constants | case.constants,
            attrs={
                (parameter.num,): [["tt.divisibility", 16]]
                for parameter in kernel.params
                if (kind := signature[parameter.name]).startswith("*")
                or (kind == "i32" and not parameter.do_not_specialize)
            },
        ),
        target=GPUTarget("cuda", CAPABILITY, 32),
        options={
            "num_warps": case.num_warps, "num_stages": case.num_stages, "enable_fp_fusion": case.fp_fusion
        },
    )  # fmt: skip
    found = _inspect(made.asm["ptx"], made.asm["cubin"], made.metadata.shared)
    if not case.fp_fusion and (count := len(INEXACT.findall(made.asm["ptx"]))):
        found.instructions["inexact"] = count
    return found


def _inspect(ptx: str, cubin: bytes, shared_memory: int) -> Compiled:
    usage, sass = _dump(cubin, "--dump-resource-usage"), _dump(cubin, "-sass")
    numbers = dict(re.findall(r"\b(REG|STACK):(\d+)", usage))
    mnemonics = Counter(MNEMONIC.findall(sass))
    return Compiled(
        registers=int(numbers["REG"]),
        stack=int(numbers["STACK"]),
        shared_memory=shared_memory,
        tensor_core=dict(sorted(Counter(TENSOR_CORE.findall(ptx)).items())),
        instructions={name: mnemonics[name] for name in WATCHED if mnemonics[name]},
    )


def _dump(cubin: bytes, what: str) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([tool, what, file.name], capture_output=True, text=True, check=True).stdout


def complaints(case: Case, made: Compiled) -> list[str]:
    """What no kernel of ours may do by default; empty if all is well."""
    found = []
    if made.stack or made.instructions.get("STL"):
        found.append(f"{made.stack} bytes of registers are spilled")
    if made.shared_memory > SHARED_MEMORY_LIMIT:
        found.append(f"{made.shared_memory} bytes of shared memory, {SHARED_MEMORY_LIMIT} are there")
    if made.shared_memory > case.memory:
        found.append(f"{made.shared_memory} bytes of shared memory, {case.memory} were reckoned with")
    if unwanted := [name for name in case.without if made.instructions.get(name)]:
        found.append(f"expected no {', '.join(unwanted)}")
    if inexact := made.instructions.get("inexact"):
        found.append(f"expected every operation as written, found {inexact} that are fused or less than IEEE")
    if case.factors is not None:
        strays = [name for name in made.tensor_core if not (name.startswith("wgmma") and name.endswith(case.factors))]
        if strays or not made.tensor_core:
            found.append(f"expected wgmma on {case.factors}, found {', '.join(strays) or 'no tensor-core instruction'}")
    return found

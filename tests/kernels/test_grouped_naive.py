"""The specification of the routed experts against the reference model's own experts."""

import subprocess
import sys

import pytest
import torch

from qconvert.schemes import QuantizedWeight, get_scheme
from qconvert_kernels.grouped import naive
from qconvert_kernels.grouped.fp8 import Fp8Experts
from qconvert_kernels.grouped.int4 import Int4Experts
from qconvert_kernels.grouped.stacked import Activations
from qconvert_kernels.int4_gemm.packing import repack
from qconvert_reference.linear import Numerics
from qconvert_reference.moe import Mlp, SparseMoe
from tests.kernels.grouped_cases import activations, routes

E, HIDDEN, INNER = 4, 256, 192


def weights(scheme_name: str) -> dict[str, QuantizedWeight]:
    scheme, generator = get_scheme(scheme_name), torch.Generator().manual_seed(0)
    shapes = {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
    return {
        f"{expert}.{name}.weight": scheme.quantize(torch.randn(shape, generator=generator) / shape[1] ** 0.5)
        for expert in range(E)
        for name, shape in shapes.items()
    }


def run_reference(stored: dict[str, QuantizedWeight], numerics: Numerics, x: torch.Tensor) -> torch.Tensor:
    """The reference layer with its experts alone"""
    layer = SparseMoe.__new__(SparseMoe)
    layer.grouped = None
    layer.top_k, layer.experts = 2, [Mlp(str(expert), stored.__getitem__, numerics) for expert in range(E)]
    chosen, scale = routes(len(x), 2, E, "random")
    return layer._run_experts(x, chosen, scale)


def parts(stored: dict[str, QuantizedWeight], name: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    found = [stored[f"{expert}.{name}_proj.weight"] for expert in range(E)]
    return [(weight.codes, weight.scales) for weight in found]


@pytest.mark.parametrize("lane", ["none", "fp8-group128"])
def test_fp8_equals_the_reference_but_for_its_roundings(lane: Activations) -> None:
    """The reference rounds gate x, silu, up x, h, z and (weight-only) W to BF16: six times 2^-8 at most.

    Codes of h may then fall on the other side of a middle: a difference of three 2^-8 does that to 3/16 of them, where
    steps are smallest (2^-4), each by 2^-3 at most. Quantising activations does more, so the other lane is further off.
    """
    stored, x = weights("fp8-block128"), activations(40, HIDDEN)
    want = run_reference(stored, Numerics(activations=lane), x)
    stacked = Fp8Experts.stack(*(parts(stored, name) for name in ("gate", "up", "down")))
    got = naive.moe(x, *routes(40, 2, E, "random"), stacked, lane)
    error = float((got.float() - want).norm() / want.norm())
    assert error <= 6 * 2.0**-8 + (0 if lane == "none" else (3 / 16) ** 0.5 * 2.0**-3)
    other: Activations = "none" if lane == "fp8-group128" else "fp8-group128"
    mistaken = naive.moe(x, *routes(40, 2, E, "random"), stacked, other)
    assert float((mistaken.float() - want).norm() / want.norm()) > 2 * error


@pytest.mark.parametrize("group", [32, 64, 128])
def test_int4_equals_the_reference_but_for_its_roundings(group: int) -> None:
    """The same six roundings."""
    stored, x = weights(f"int4-g{group}"), activations(40, HIDDEN)
    want = run_reference(stored, Numerics(), x)
    packed = [
        [repack(codes, scales, group=group) for codes, scales in parts(stored, name)] for name in ("gate", "up", "down")
    ]
    got = naive.moe(x, *routes(40, 2, E, "random"), Int4Experts.stack(*packed))
    assert float((got.float() - want).norm() / want.norm()) <= 6 * 2.0**-8
    mistaken = naive.moe(x, *routes(40, 2, E, "random"), Int4Experts.stack(packed[1], packed[0], packed[2]))
    assert float((mistaken.float() - want).norm() / want.norm()) > 0.5


def test_without_triton_the_specification_works_and_the_kernels_are_missed() -> None:
    script = """
import sys
sys.modules["triton"] = None  # as if it were not installed
import torch
from qconvert_kernels.errors import KernelsMissing
from qconvert_kernels.grouped import Fp8Experts, moe, naive
weight = torch.ones(128, 128).to(torch.float8_e4m3fn), torch.ones(1, 1)
stacked = Fp8Experts.stack([weight], [weight], [weight])
call = torch.zeros(1, 128).bfloat16(), torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1), stacked
assert not naive.moe(*call).any()
try:
    moe(*call)
except KernelsMissing:
    print("missed")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.stdout == "missed\n", done.stderr

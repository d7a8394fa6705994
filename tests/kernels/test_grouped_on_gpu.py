"""Routed experts and the delta rule on a real GPU: layouts, assembly, races, graphs, default tilings.

How far a GPU may be from the naive form there. Rows h and z are rounded to BF16 from sums that differ in their last
bits, so a few of them fall on the other side of a middle, by 2^-7 at most; were it one in four, 2^-8 of the whole. For
W8A8 the tensor core's sums of e4m3 keep 13 bits and some codes of h move by a step of 2^-3 at most; were it one in 64,
2^-6. A single-bit fault of a kernel is found by the interpreter's tests, not here. No GPU has run this yet.
"""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need triton")

from qconvert_kernels.delta_rule import gated_delta_rule
from qconvert_kernels.delta_rule import naive as delta_naive
from qconvert_kernels.fp8_gemm.naive import BLOCK
from qconvert_kernels.grouped import Fp8Experts, Int4Experts, moe, naive, products, routing
from qconvert_kernels.grouped.stacked import Activations, Experts
from qconvert_kernels.int4_gemm.packing import repack
from tests.kernels.grouped_cases import activations, routes

DEVICE = torch.device("cuda")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
E, H, INNER, SLOTS = 16, 512, 256, 4
LANES: list[Activations] = ["none", "fp8-group128", "none", "none"]
KINDS = list(zip(["fp8", "fp8", "int4-g32", "int4-g128"], LANES, strict=True))


def stacked_of(kind: str) -> Experts:
    generator = torch.Generator().manual_seed(0)
    shapes = [(INNER, H), (INNER, H), (H, INNER)]
    if kind == "fp8":
        return Fp8Experts.stack(*([fp8_of(*shape, generator) for _ in range(E)] for shape in shapes))
    group = 32 if kind == "int4-g32" else BLOCK
    return Int4Experts.stack(
        *([repack(*int4_of(*shape, group, generator), group=group) for _ in range(E)] for shape in shapes)
    )


def fp8_of(rows: int, columns: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    codes = torch.randn(rows, columns, generator=generator).mul(100).clamp(-448, 448)
    scales = (0.5 + torch.rand(rows // BLOCK, columns // BLOCK, generator=generator)) / 100 / columns**0.5
    return codes.to(torch.float8_e4m3fn).to(DEVICE), scales.bfloat16().to(DEVICE)


def int4_of(rows: int, columns: int, group: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    codes, zeros = (
        torch.randint(-8, 8, (rows, width), generator=generator, dtype=torch.int8)
        for width in (columns, columns // group)
    )
    scales = (0.5 + torch.rand(rows, columns // group, generator=generator)) / 5 / columns**0.5
    return codes.to(DEVICE), scales.bfloat16().to(DEVICE), zeros.to(DEVICE)


def call(tokens: int, how: str = "random") -> tuple[Tensor, Tensor, Tensor]:
    chosen, weights = routes(tokens, SLOTS, E, how)
    return activations(tokens, H).to(DEVICE), chosen.to(DEVICE), weights.to(DEVICE)


@pytest.mark.parametrize("tokens", [1, 9, 300])
@pytest.mark.parametrize("kind, lane", KINDS)
def test_moe(kind: str, lane: Activations, tokens: int) -> None:
    x, chosen, weights = call(tokens)
    stacked = stacked_of(kind)
    first, second = (moe(x, chosen, weights, stacked, lane) for _ in range(2))
    assert torch.equal(first, second), "two runs differ: a race"
    want = naive.moe(x, chosen, weights, stacked, lane).float()
    assert float((first.float() - want).norm() / want.norm()) <= (2.0**-8 if lane == "none" else 2.0**-6)


@pytest.mark.parametrize("tile", [16, 64])
@pytest.mark.parametrize("tokens, how", [(1, "random"), (300, "random"), (5000, "random"), (300, "one")])
def test_layout(tokens: int, how: str, tile: int) -> None:
    chosen, _ = routes(tokens, SLOTS, E, how)
    want = routing.naive_layout(chosen, E, tile)
    for made in (products.layout(chosen.to(DEVICE), E, tile), routing.layout(chosen.to(DEVICE), E, tile)):
        for got, expected in zip(made, want, strict=True):
            assert torch.equal(got.cpu(), expected)


@pytest.mark.parametrize("kind, lane", KINDS)
def test_a_captured_graph_follows_the_routes(kind: str, lane: Activations) -> None:
    x, chosen, weights = call(20)
    stacked, other = stacked_of(kind), routes(20, SLOTS, E, "one")[0].to(DEVICE)
    moe(x, chosen, weights, stacked, lane)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = moe(x, chosen, weights, stacked, lane)
    for routes_now in (chosen.clone(), other):
        want = moe(x, routes_now, weights, stacked, lane)
        chosen.copy_(routes_now)
        graph.replay()
        assert torch.equal(y, want)


@pytest.mark.parametrize("tokens", [1, 16, 17, 64, 300])
def test_delta_rule(tokens: int) -> None:
    """Three TF32 products keep 21 bits or more, so each of the roundings counted in the interpreter's test is 2^-21."""
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, tokens, 2, 128, generator=generator).to(DEVICE) for _ in range(2))
    v = torch.randn(2, tokens, 4, 128, generator=generator).to(DEVICE)
    beta, fade = (torch.rand(2, tokens, 4, generator=generator).to(DEVICE) for _ in range(2))
    got = gated_delta_rule(q, k, v, -0.1 * fade, beta)
    want = delta_naive.gated_delta_rule(q, k, v, -0.1 * fade, beta, dtype=torch.float64)
    allowed = tokens**0.5 * (128 + 64) * 2.0**-21 * float(v.norm(dim=-1).max())
    for found, expected in zip(got, want, strict=True):
        assert float((found.double() - expected).abs().max()) <= allowed

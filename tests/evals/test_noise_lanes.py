"""A noise lane for each way of rounding: which candidates get one, who shares it, and that its arithmetic differs."""

from pathlib import Path

import pytest
import torch

from qconvert.quantization import quantize
from qconvert_evals.lanes import noise_lanes, open_lanes, rounding, with_floors
from qconvert_evals.results import Measurement, reference_of
from qconvert_reference.lane import Lane
from qconvert_reference.linear import EightBitInputLinear
from tests.evals.tiny_pair import write_pair

QKVZ = "model.layers.0.linear_attn.in_proj_qkvz.weight"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("kinds")
    base, fp8 = write_pair(root)
    made = {"bf16": base, "fp8": fp8}
    quantize(base, root / "pow2", scales="pow2")
    quantize(base, root / "int4", scheme="int4-g32")
    quantize(base, root / "w4a8", scheme="int4-g128", file_format="w4afp8")
    return made | {name: root / name for name in ("pow2", "int4", "w4a8")}


def opened(folders: dict[str, Path], *names: str, activations: str | None = None) -> list[Lane]:
    base, others = open_lanes(folders["bf16"], {name: folders[name] for name in names}, activations)
    return [base, *others]


def test_one_noise_lane_for_each_way_of_rounding(folders: dict[str, Path]) -> None:
    lanes = opened(folders, "int4", "fp8", "w4a8", "pow2")
    assert [lane.name for lane in lanes] == [
        "bf16", "bf16-noise", "int4", "fp8", "w4a8", "pow2", "fp8-noise", "w4a8-noise"
    ]  # fmt: skip
    assert noise_lanes(lanes[2:6]) == {
        "int4": "bf16-noise", "fp8": "fp8-noise", "w4a8": "w4a8-noise", "pow2": "fp8-noise"
    }  # fmt: skip
    by_name = {lane.name: lane for lane in lanes}
    for name in ("bf16-noise", "fp8-noise", "w4a8-noise"):
        noise, lane = by_name[name], by_name[reference_of(name)]
        assert noise.weights is lane.weights and noise.numerics.accumulation == "split"
        assert noise.numerics.activations == lane.numerics.activations and lane.numerics.accumulation == "plain"


def test_weights_alone_are_bf16s_kind(folders: dict[str, Path]) -> None:
    lanes = opened(folders, "fp8", "int4", activations="none")
    assert [lane.name for lane in lanes] == ["bf16", "bf16-noise", "fp8", "int4"]
    assert {rounding(lane) for lane in lanes} == {""}


def test_activations_that_meet_no_quantized_weight_are_no_kind(folders: dict[str, Path]) -> None:
    (lane,) = open_lanes(folders["bf16"], {"again": folders["bf16"]}, "fp8-group128")[1][1:]
    assert lane.numerics.activations == "fp8-group128" and rounding(lane) == ""


def test_eight_bit_inputs_are_really_added_in_two_halves(folders: dict[str, Path]) -> None:
    by_name = {lane.name: lane for lane in opened(folders, "fp8")}
    plain, split = (
        EightBitInputLinear(by_name[name].load(QKVZ), by_name[name].numerics)  # type: ignore[arg-type]
        for name in ("fp8", "fp8-noise")
    )
    x = torch.randn(64, plain.weight().shape[1], generator=torch.Generator().manual_seed(0)).bfloat16()
    half = x.shape[1] // 2
    rounded, weight = plain.input(x), plain.weight()
    halves = [rounded[:, part] @ weight[:, part].T for part in (slice(half), slice(half, None))]
    assert torch.equal(split(x), (halves[0] + halves[1]).bfloat16())
    exact = rounded.double() @ weight.double().T
    for found in (plain(x), split(x)):
        assert ((found.double() - exact).abs() <= 2.0**-8 * exact.abs() + 1e-5 * exact.abs().max()).all()


def test_floors_come_from_the_lanes_own_kind() -> None:
    rows = [
        Measurement("a.b", lane, "all", number, "nats", 9)
        for lane, number in {"bf16": 9.0, "bf16-noise": 1.0, "fp8": 5.0, "int4": 6.0, "fp8-noise": 2.0}.items()
    ]
    found = with_floors(rows, {"fp8": "fp8-noise", "int4": "bf16-noise"})
    assert {row.lane: row.noise_floor for row in found} == {
        "bf16": None, "bf16-noise": None, "fp8": 2.0, "int4": 1.0, "fp8-noise": None
    }  # fmt: skip

"""The whole comparison on another device than the CPU: nothing forgets to move, and every number stays the same."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from qconvert.errors import UserError
from qconvert.quantization import quantize
from qconvert_evals.compare import compare
from qconvert_evals.latency import LatencySettings, measure, open_latency_lanes
from qconvert_evals.results import Results
from qconvert_evals.speculation import LiveSettings
from qconvert_reference import products
from qconvert_reference.device import choose_device
from qconvert_reference.generation import generate_speculative
from qconvert_reference.lane import Lane
from qconvert_reference.linear import Numerics
from tests.elsewhere import Elsewhere, TwoDevices, second_device
from tests.evals.tiny_pair import some_documents, write_pair


@pytest.fixture(autouse=True)
def one_way_to_multiply(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A CPU may take its products in fp32 where that is quicker; another device never does. The order of sums is not
    what is compared here."""
    monkeypatch.setenv(products.VARIABLE, "bf16")
    products.forget()
    yield
    products.forget()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("device")
    base, fp8 = write_pair(folder)
    quantize(base, folder / "int4", scheme="int4-g32", asymmetric=True)
    return {"bf16": base, "fp8": fp8, "int4": folder / "int4"}


def run(folders: dict[str, Path], device: torch.device) -> Results:
    candidates = {name: folders[name] for name in ("fp8", "int4")}
    live = LiveSettings(2, prompt_tokens=16, new_tokens=4)
    return compare(
        folders["bf16"], candidates, documents=some_documents(2), tokens=300, seq_len=64, draft_tokens=2, live=live,
        device=device,
    )  # fmt: skip


@pytest.mark.slow
def test_every_number_is_that_of_the_cpu(folders: dict[str, Path]) -> None:
    with sdpa_kernel(SDPBackend.MATH):  # torch picks attention by device, and each adds in its own order
        here = run(folders, torch.device("cpu"))
        with second_device() as device:
            there = run(folders, device)
    assert there.measurements == here.measurements
    assert there.missing == here.missing
    assert there.figures == here.figures


def test_benchmarks_of_latency_run_elsewhere(folders: dict[str, Path]) -> None:
    settings = LatencySettings(contexts=(16,), draft_tokens=2, new_tokens=4, rounds=1)
    with second_device() as device:
        lanes = open_latency_lanes(folders["bf16"], {"fp8": folders["fp8"]}, device)
        found = measure(lanes, list(range(32)), settings)
    assert {row.value for one in found for row in one.measurements if row.name == "latency.decode"} != {None}


def test_a_tensor_left_behind_is_seen(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault: a lane that loads one weight where the checkpoint is, not where the lane is."""
    load = Lane.load

    def forgetful(lane: Lane, name: str) -> object:
        return lane.weights.load(name) if name.endswith("input_layernorm.weight") else load(lane, name)

    monkeypatch.setattr(Lane, "load", forgetful)
    with second_device() as device, pytest.raises(TwoDevices):
        run(folders, device)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_generation_draws_the_same_tokens_anywhere(folders: dict[str, Path], temperature: float) -> None:
    lane = Lane.open("bf16", folders["bf16"], Numerics())

    def written(device: torch.device) -> list[int]:
        model = Lane(lane.name, lane.weights, lane.numerics, device).model()
        source = torch.Generator().manual_seed(3)
        output = generate_speculative(model, [5, 6, 7], 6, draft_tokens=2, temperature=temperature, generator=source)
        return output.tokens

    here = written(torch.device("cpu"))
    with second_device() as device, torch.no_grad():
        assert written(device) == here


def test_what_the_second_device_refuses() -> None:
    with second_device() as device:
        away, here = torch.ones(2, 3).to(device), torch.ones(2, 3)
        assert isinstance(away, Elsewhere) and isinstance(torch.zeros(2, device=device), Elsewhere)
        for mixed in (lambda: away + here, lambda: away[here.bool()], lambda: away.index_add_(0, here[0].long(), away)):
            with pytest.raises(TwoDevices):
                mixed()
        assert torch.equal((away + torch.tensor(1.0)).cpu(), here + 1)
        away[0, 0] = 7
        assert away.cpu()[0, 0] == 7


@pytest.mark.parametrize("asked", ["cuda", "cuda:3", "tpu", "xpu", ""])
def test_a_device_that_is_not_there_is_one_message(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="device"):
        choose_device(asked)


def test_auto_is_the_cpu_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")


@pytest.mark.gpu
def test_a_gpu_gives_the_same_verdict_up_to_the_order_of_sums(folders: dict[str, Path]) -> None:
    """Every mean within the noise lane's own size: another device is another order of sums, no more."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    here, there = run(folders, torch.device("cpu")), run(folders, choose_device("cuda"))
    for lane in ("fp8", "int4"):
        ours, theirs = here.find("logits.kl_mean", lane), there.find("logits.kl_mean", lane)
        noise = here.find("logits.kl_mean", "bf16-noise")
        assert ours and theirs and noise and ours.value and theirs.value and noise.value
        # KL of sums of two independent errors adds up; both runs carry the noise once.
        assert abs(ours.value - theirs.value) < 4 * (noise.value + (noise.value * ours.value) ** 0.5)
    assert replace(there.lanes[0], versions={}, numerics={}).files == here.lanes[0].files

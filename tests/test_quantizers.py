"""Quantizing on another device: the same files, or a refusal before the first byte.

There is no GPU here. The device of these tests is called cuda and is the CPU; what quantizes there is the truth of the
kernels, which shares no code with the schemes, or a function with a fault.
"""

import json
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from qconvert import quantizers
from qconvert.checkpoint import MANIFEST, hash_file, write_checkpoint
from qconvert.cli import main
from qconvert.errors import UserError
from qconvert.manifest import Manifest
from qconvert.quantization import plan_quantize, plan_schemes, quantize, run_plan
from qconvert.quantizers import OnCpu, OnDevice, choose_quantizer, find_offers
from qconvert.schemes import Scheme, get_scheme
from qconvert.schemes.fp8_block128 import Fp8Block128
from qconvert.schemes.int4 import Int4
from qconvert_kernels.quantize_weights import naive
from tests.tiny import tiny_config, tiny_tensors, write_tiny_checkpoint

SMALL = 400_000  # bytes a shard, so that there are several
Numbers = tuple[Tensor, Tensor, Tensor | None]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("quantizers") / "source", shards=2)


def by_naive(scheme: str, settings: Mapping[str, Any], device: torch.device) -> quantizers.Offered:
    if scheme == "fp8-block128":
        quantize, block = partial(naive.fp8_block128, scales=settings["scale_type"]), (128, 128)
    else:
        given = {"scales": settings["scale_type"], "method": settings["method"], "asymmetric": settings["asymmetric"]}
        quantize, block = partial(naive.int4, group=settings["group"], **given), (1, settings["group"])
    return "a kernel", quantize, lambda weight, *parts: naive.squared_errors(weight, naive.Quantized(*parts), block)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that there is a GPU with these offers."""

    def pretend(*offers: quantizers.Offer) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(quantizers, "find_offers", lambda: list(offers))
        monkeypatch.setattr(quantizers, "OnDevice", lambda _, *rest: OnDevice(torch.device("cpu"), *rest))

    return pretend


def hashes(folder: Path) -> dict[str, str]:
    """Every file's hash; of the manifest, all but what differs from run to run."""
    found = {path.name: hash_file(path) for path in folder.iterdir() if path.name != MANIFEST}
    record = json.loads((folder / MANIFEST).read_text())
    del record["run"]
    return found | {MANIFEST: json.dumps(record)}


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["quantize", *map(str, arguments)])


@pytest.mark.parametrize("offers", [(by_naive,), ()], ids=["kernels", "plain torch"])
@pytest.mark.parametrize(
    "options",
    [
        {"scales": "f32"},
        {"scheme": "int4-g64", "asymmetric": True},
        {"scheme": "int4-g32", "method": "rtn", "recipe": "mixed"},
    ],
    ids=str,
)
def test_the_same_files(
    options: dict[str, Any], offers: tuple[Any, ...], source: Path, tmp_path: Path, cuda: Callable[..., None]
) -> None:
    quantize(source, tmp_path / "cpu", **options)
    cuda(*offers)
    manifest = quantize(source, tmp_path / "cuda", device="cuda", workers=3, **options)
    assert manifest.run["device"] == f"cpu, {'a kernel' if offers else 'plain torch'}"
    assert hashes(tmp_path / "cuda") == hashes(tmp_path / "cpu")


@pytest.mark.parametrize("order", [("cuda", "cpu"), ("cpu", "cuda")])
def test_what_one_device_began_another_finishes(
    order: tuple[str, str], source: Path, tmp_path: Path, cuda: Callable[..., None]
) -> None:
    quantize(source, tmp_path / "straight", max_shard_size=SMALL)
    cuda(by_naive)

    def ctrl_c(done: int, total: int) -> None:
        if done > 0.6 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize(source, tmp_path / "out", max_shard_size=SMALL, progress=ctrl_c, device=order[0])
    (partial_folder,) = tmp_path.glob(".out*")
    finished = {path.name: path.stat().st_mtime_ns for path in partial_folder.glob("*.safetensors")}
    assert finished
    quantize(source, tmp_path / "out", max_shard_size=SMALL, device=order[1])
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in finished} == finished
    assert hashes(tmp_path / "out") == hashes(tmp_path / "straight")


def faulty(part: str) -> quantizers.Offer:
    """One number off by one, in the last place; or NaN that goes unseen."""

    def offer(scheme: str, settings: Mapping[str, Any], device: torch.device) -> quantizers.Offered:
        name, right, errors = by_naive(scheme, settings, device)

        def wrong(weight: Tensor) -> Numbers:
            codes, scales, zeros = right(weight)
            if part == "codes":
                codes.view(torch.uint8)[3, 5] ^= 1
            elif part == "scales":
                scales.view(torch.int16)[-1, 0] += 1
            elif part == "zeros":
                assert zeros is not None
                zeros[3, 1] ^= 1
            elif part == "no zeros":
                zeros = None
            elif part == "checks of unusable values":
                scales = scales.nan_to_num(1.0)
            return codes, scales, zeros

        def wrong_errors(*given: Any) -> Tensor:
            sums = errors(*given)
            return sums.nextafter(sums * 2) if part == "squared errors" else sums

        return name, wrong, wrong_errors

    return offer


FAULTS = [
    *((part, "fp8-block128") for part in ("codes", "scales", "squared errors", "checks of unusable values")),
    *((part, "int4-g64") for part in ("codes", "scales", "zeros", "no zeros", "checks of unusable values")),
]


@pytest.mark.parametrize("device", ["cuda", "auto"])
@pytest.mark.parametrize(("part", "scheme"), FAULTS)
def test_a_device_that_differs_is_refused(
    part: str, scheme: str, device: str, source: Path, tmp_path: Path, cuda: Callable[..., None]
) -> None:
    cuda(faulty(part))
    options = ["--scheme", scheme, *(["--asymmetric"] if scheme.startswith("int4") else [])]
    done = command(source, tmp_path / "out", "--device", device, *options)
    assert done.exit_code == 2
    assert f"{part.removeprefix('no ')} of {scheme} differ on a sample" in done.stderr
    assert "way out: give --device cpu" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_cuda_without_a_gpu(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = command(source, tmp_path / "out", "--device", "cuda")
    assert done.exit_code == 2
    assert "there is no CUDA device to quantize on" in done.stderr and f"torch {torch.__version__}" in done.stderr
    assert "Traceback" not in done.output
    assert list(tmp_path.iterdir()) == []


def test_auto_without_a_gpu(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = command(source, tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    assert "device: cpu\n" in done.stderr
    assert json.loads(done.stdout)["run"]["device"] == "cpu"
    manifest = Manifest.load(tmp_path / "out")
    assert manifest is not None and manifest.run["device"] == "cpu"


def test_auto_takes_a_gpu_if_there_is_a_kernel_for_every_scheme(cuda: Callable[..., None]) -> None:
    fp8, int4 = get_scheme("fp8-block128"), get_scheme("int4-g64")
    cuda()
    assert isinstance(choose_quantizer("auto", [fp8]), OnCpu)
    assert isinstance(choose_quantizer("cuda", [fp8]), OnDevice)
    cuda(by_naive)
    assert isinstance(choose_quantizer("auto", [fp8, int4]), OnDevice)
    assert isinstance(choose_quantizer("cpu", [fp8]), OnCpu)
    cuda(lambda name, *rest: by_naive(name, *rest) if name == "fp8-block128" else None)
    assert isinstance(choose_quantizer("auto", [fp8, int4]), OnCpu)
    mixed = choose_quantizer("cuda", [fp8, int4])
    assert isinstance(mixed, OnDevice) and mixed.offers(fp8) and not mixed.offers(int4)


@pytest.mark.parametrize("method", ["imatrix", "gptq"])
def test_calibrated_methods_stay_on_the_cpu(method: str, cuda: Callable[..., None]) -> None:
    cuda(by_naive)
    schemes: list[Scheme] = [Fp8Block128(), Int4(method=method)]
    assert isinstance(choose_quantizer("auto", schemes), OnCpu)
    with pytest.raises(UserError, match=f"the method {method} runs on the CPU only"):
        choose_quantizer("cuda", schemes)


def test_unknown_devices_are_refused() -> None:
    with pytest.raises(UserError, match=r"unknown device 'tpu'[\s\S]*auto, cpu, cuda"):
        choose_quantizer("tpu", [Fp8Block128()])


def test_a_gpu_that_fails_at_once(cuda: Callable[..., None]) -> None:
    """Another program holds its memory, or Triton finds no compiler."""

    def offer(*given: Any) -> quantizers.Offered:
        def fail(weight: Tensor) -> Numbers:
            raise torch.OutOfMemoryError("CUDA out of memory")

        return "a kernel", fail, by_naive(*given)[2]

    cuda(offer)
    with pytest.warns(RuntimeWarning, match="on the CPU, cpu, a kernel failed: OutOfMemoryError: CUDA out of memory"):
        assert isinstance(choose_quantizer("auto", [Fp8Block128()]), OnCpu)
    with pytest.raises(UserError, match=r"quantizing fails on this device[\s\S]*CUDA out of memory"):
        choose_quantizer("cuda", [Fp8Block128()])


@pytest.mark.parametrize("offers", [(by_naive,), ()], ids=["kernels", "plain torch"])
def test_unusable_values_have_the_message_of_a_cpu(
    offers: tuple[Any, ...], tmp_path: Path, cuda: Callable[..., None]
) -> None:
    tensors = tiny_tensors(tiny_config())
    tensors["model.layers.1.mlp.experts.3.down_proj.weight"][101, 7] = float("inf")
    source = write_checkpoint(tmp_path / "source", tiny_config(), tensors)
    with pytest.raises(UserError) as there:
        quantize(source, tmp_path / "cpu")
    cuda(*offers)
    with pytest.raises(UserError) as here:
        quantize(source, tmp_path / "cuda", device="cuda")
    assert str(here.value) == str(there.value)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_unusable_values_that_only_the_device_sees_are_a_bug(cuda: Callable[..., None]) -> None:
    def offer(*given: Any) -> quantizers.Offered:
        name, right, errors = by_naive(*given)
        return name, lambda weight: (right(weight)[0], torch.full((2, 3), float("nan")), None), errors

    device = OnDevice(torch.device("cpu"), [Fp8Block128()], [offer])
    with pytest.raises(ArithmeticError, match="where the CPU finds none"):
        device(Fp8Block128(), torch.ones(140, 300).to(torch.bfloat16))
    cuda(offer)
    for asked in ("auto", "cuda"):  # and no warning: a device that is wrong is not one that fails
        with pytest.raises(UserError, match="checks of unusable values of fp8-block128 differ"):
            choose_quantizer(asked, [Fp8Block128()])


class Streams:
    """Copies to the host that are on their way until somebody waits for the stream."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, waits: bool) -> None:
        self.made, self.waits, self.copying = [], waits, threading.local()
        to = Tensor.to

        def send(tensor: Tensor, *where: Any, **how: Any) -> Tensor:
            if where[0] == torch.device("cuda", 0):
                return tensor
            if where[0] != "cpu":
                return to(tensor, *where, **how)
            arriving = torch.zeros_like(tensor)
            self.copying.__dict__.setdefault("pending", []).append((arriving, tensor))
            return arriving

        monkeypatch.setattr(Tensor, "to", send)
        monkeypatch.setattr(Tensor, "pin_memory", lambda tensor: tensor)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
        monkeypatch.setattr(torch.cuda, "Stream", lambda device: self.made.append(device) or self)
        monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext(stream))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: self)

    def synchronize(self) -> None:
        while self.waits and self.copying.pending:
            arriving, tensor = self.copying.pending.pop()
            arriving.copy_(tensor)


@pytest.mark.parametrize("waits", [True, False])
def test_numbers_are_read_when_they_have_arrived(
    waits: bool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way through streams and pinned memory, with a device that copies late; or never, which the check sees."""
    quantize(source, tmp_path / "cpu")
    streams = Streams(monkeypatch, waits=waits)
    plan = plan_quantize(source, tmp_path / "cuda")
    device = OnDevice(torch.device("cuda", 0), plan_schemes(plan), [by_naive])
    if not waits:
        with pytest.raises(UserError, match="codes of fp8-block128 differ"):
            device.check(plan_schemes(plan)[0])
        return
    device.check(plan_schemes(plan)[0])
    manifest = run_plan(plan, workers=3, quantizer=device)
    assert manifest.run["device"] == "cuda:0 a GPU, a kernel"
    assert hashes(tmp_path / "cuda") == hashes(tmp_path / "cpu")
    assert 2 <= len(streams.made) <= 4  # one a thread: the first, which checks, and those of the workers that had work


def test_our_kernels_are_registered_and_the_core_does_not_import_them() -> None:
    assert [offer.__module__ for offer in find_offers()] == ["qconvert_kernels.quantize_weights"]
    from qconvert.schemes import fused

    assert "qconvert_kernels" not in vars(fused) and "qconvert_kernels" not in vars(sys.modules["qconvert.quantizers"])


def test_the_benchmark_asserts_bytes_first_and_needs_a_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks import quantize_on_gpu as benchmark

    weight = torch.randn(1100, 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    for case in benchmark.cases():
        good = OnDevice(torch.device("cpu"), [case.scheme], [by_naive])
        benchmark.assert_bytes(case, good, weight)
        monkeypatch.setattr(benchmark, "find_offers", lambda: [by_naive])
        calls, moved = benchmark.kernel_calls(case, weight)
        assert calls.keys() == moved.keys() and min(moved.values()) > 3 * weight.numel()
        assert benchmark.pieces_per_second(good, case.scheme, weight, 2) > 0
        with pytest.raises(UserError, match="differ on a sample"):
            benchmark.assert_bytes(case, OnDevice(torch.device("cpu"), [case.scheme], [faulty("codes")]), weight)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert benchmark.main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 1 and "needs a CUDA device" in captured.err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kernels", [True, False], ids=["kernels", "plain torch"])
@pytest.mark.parametrize("scheme", ["fp8-block128", "int4-g64"])
def test_the_same_files_from_a_gpu(
    scheme: str, kernels: bool, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not kernels:
        monkeypatch.setattr(quantizers, "find_offers", lambda: [])
    quantize(source, tmp_path / "cpu", scheme=scheme)
    manifest = quantize(source, tmp_path / "cuda", scheme=scheme, device="cuda", workers=4)
    assert "cuda:0" in manifest.run["device"]
    assert hashes(tmp_path / "cuda") == hashes(tmp_path / "cpu")

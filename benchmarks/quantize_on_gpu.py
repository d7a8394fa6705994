"""The quantizers of `quantize --device cuda` on a GPU, beside copies of the same run.

    python benchmarks/quantize_on_gpu.py [--rows 151936] [--columns 2048] [--repeats 50] [--threads 4] [--out FILE.json]

First the bytes: every case is held against the CPU on the sample of all kinds of numbers and on rows of the weight that
is timed. Then, on a weight many times larger than the L2 cache, each kernel's bytes read and written a second, as a
fraction of what a device-to-device copy moves (target: 0.7; the search of `mse` does some hundred operations a number
and is bound by those). Last, whole pieces as a conversion sends them, from the host's memory and back, by several
threads, beside a pinned host-to-device copy and the CPU's own loops with as many threads. Prints JSON; medians.

Without a GPU it says so and ends with exit code 2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qconvert.quantizers import OnCpu, OnDevice, Quantizer, find_offers
from qconvert.schemes import QuantizedWeight, Scheme, get_scheme

PIECE = 1024  # rows that a conversion quantizes at a time, at 2048 columns
TARGET = 0.7  # of the copy's bandwidth
GB = 1e9


@dataclass(frozen=True)
class Case:
    """A scheme with its settings."""

    name: str
    scheme: Scheme


def cases() -> Iterator[Case]:
    """FP8 by scales; INT4 by group, rule and zero points."""
    for scales in ("bf16", "pow2"):
        yield Case(f"fp8-block128 {scales}", get_scheme("fp8-block128", scales=scales))
    for group, method, asymmetric in (
        (128, "rtn", False), (128, "rtn", True), (128, "mse", False), (128, "mse", True), (32, "mse", False),
    ):  # fmt: skip
        name = f"int4-g{group} {method}{' asymmetric' if asymmetric else ''}"
        yield Case(name, get_scheme(f"int4-g{group}", method=method, asymmetric=asymmetric))


def assert_bytes(case: Case, device: OnDevice, weight: Tensor) -> None:
    """The device gives the CPU's numbers: of the sample, and of rows of `weight` (on the CPU) in pieces."""
    device.check(case.scheme)
    cpu = OnCpu()
    for start in (0, (len(weight) - 1) // PIECE * PIECE):
        piece = weight[start : start + PIECE]
        (got, errors), (want, wanted_errors) = device(case.scheme, piece), cpu(case.scheme, piece)
        for one, other in zip(_parts(got), _parts(want), strict=True):
            assert torch.equal(one.view(torch.uint8), other.view(torch.uint8)), case.name
        assert errors == wanted_errors, case.name


def kernel_calls(case: Case, weight: Tensor) -> tuple[dict[str, Callable[[], object]], dict[str, int]]:
    """What is launched for a weight on a device, and the bytes that it reads and writes."""
    offered = next(found for offer in find_offers() if (found := offer(*_asked(case), weight.device)) is not None)
    _, quantize, squared_errors = offered
    parts = quantize(weight)
    moved = sum(part.numel() * part.itemsize for part in (weight, *parts) if part is not None)
    calls: dict[str, Callable[[], object]] = {
        "quantize": lambda: quantize(weight),
        "squared_errors": lambda: squared_errors(weight, *parts),
    }
    return calls, dict.fromkeys(calls, moved)


def seconds_on_gpu(call: Callable[[], object], repeats: int) -> float:
    """Median of single calls between events; the weight is too large for a call to find the last one's in the cache."""
    for _ in range(3):
        call()
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]  # type: ignore[no-untyped-call]
    for start, end in marks:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return float(statistics.median(start.elapsed_time(end) / 1e3 for start, end in marks))


def pieces_per_second(quantizer: Quantizer, scheme: Scheme, weight: Tensor, threads: int) -> float:
    """GB of weight a second from the host's memory and back, all pieces of it by several threads."""
    pieces = [weight[start : start + PIECE] for start in range(0, len(weight), PIECE)]
    quantizer(scheme, pieces[0])
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        begin = time.perf_counter()
        list(pool.map(lambda piece: quantizer(scheme, piece)[1], pieces))
        return weight.numel() * weight.itemsize / GB / (time.perf_counter() - begin)


def measure(case: Case, device: OnDevice, weight: Tensor, copy: float, repeats: int, threads: int) -> dict[str, Any]:
    """One row of the result; `copy` is the bandwidth that fractions are of."""
    assert_bytes(case, device, weight)
    calls, moved = kernel_calls(case, weight.cuda())
    row: dict[str, Any] = {"case": case.name, "bytes_equal": True}
    for name, call in calls.items():
        speed = moved[name] / GB / seconds_on_gpu(call, repeats)
        row[name] = {"gb_per_s": round(speed, 1), "of_copy": round(speed / copy, 3)}
    row["reaches_target"] = row["quantize"]["of_copy"] >= TARGET
    for name, quantizer in (("cuda", device), ("cpu", OnCpu())):
        part = weight if name == "cuda" else weight[: 8 * PIECE * threads]
        row[f"pieces_{name}_gb_per_s"] = round(pieces_per_second(quantizer, case.scheme, part, threads), 2)
    return row


def copies(weight: Tensor, repeats: int) -> dict[str, float]:
    """GB/s of a device-to-device copy (read and written) and of a pinned host-to-device copy."""
    here, there = weight.pin_memory(), weight.cuda()
    other, size = torch.empty_like(there), weight.numel() * weight.itemsize
    return {
        "device_to_device": 2 * size / GB / seconds_on_gpu(lambda: other.copy_(there), repeats),
        "host_to_device": size / GB / seconds_on_gpu(lambda: there.copy_(here, non_blocking=True), repeats),
    }


def _asked(case: Case) -> tuple[str, dict[str, Any]]:
    return case.scheme.name, vars(case.scheme)


def _parts(numbers: QuantizedWeight) -> list[Tensor]:
    return [part for part in (numbers.codes, numbers.scales, numbers.zeros) if part is not None]


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if every quantizer gave the CPU's bytes; their speed is a figure, not a verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=151936)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("quantize_on_gpu.py needs a CUDA device, and torch sees none here", file=sys.stderr)
        return 2
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(asked.rows, asked.columns, generator=generator).mul_(0.02).bfloat16()
    device = OnDevice(torch.device("cuda", 0), [case.scheme for case in cases()], find_offers())
    missing = [case.name for case in cases() if not device.offers(case.scheme)]
    if missing:
        print(f"no kernel is offered for {', '.join(missing)}; pip install 'qconvert[kernels]'", file=sys.stderr)
        return 2
    speeds = copies(weight, asked.repeats)
    copy = speeds["device_to_device"]
    result = {
        "device": device.place,
        "torch": str(torch.__version__),
        "weight": [asked.rows, asked.columns],
        "threads": asked.threads,
        "copies_gb_per_s": {name: round(speed, 1) for name, speed in speeds.items()},
        "cases": [measure(case, device, weight, copy, asked.repeats, asked.threads) for case in cases()],
    }
    text = json.dumps(result, indent=2)
    print(text)
    if asked.out is not None:
        asked.out.write_text(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

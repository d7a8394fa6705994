"""The same bits on every device: what the plain code may ask of a device, that each rule is needed, and on a real GPU
the comparison itself."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qconvert.schemes import QuantizedWeight, UnusableWeight, fused, scheme
from qconvert.schemes.fp8_block128 import Fp8Block128
from qconvert.schemes.int4 import Int4

KINDS = list(itertools.product((32, 64, 128), ("bf16", "f32"), ("rtn", "mse", "imatrix"), (False, True)))
SCHEMES = [*(Fp8Block128(scales) for scales in ("bf16", "f32", "pow2")), *(Int4(*kind) for kind in KINDS)]
EVERY_BF16 = torch.arange(-0x8000, 0x8000, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
USABLE = EVERY_BF16[EVERY_BF16.float().abs() <= 2.0**126]
# Operations whose last bit, or whose order of additions, is a device's own.
UNSPECIFIED = (
    "addcmul",
    "addcdiv",
    "addr",
    "addmm",
    "lerp",
    "mm",
    "pow",
    "exp2",
    "ldexp",
    "rsqrt",
    "reciprocal",
    "mean",
)


META = torch.device("meta")  # as a GPU, its tensors have shapes and a device of their own, but no numbers


class Portable(TorchDispatchMode):
    """Refuses operations that torch carries out differently on a GPU, or that mix devices."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__.rstrip("_")
        if name == "_local_scalar_dense" and args[0].device == META:
            return args[0].dtype == torch.bool  # every weight is usable, every sum is 0
        if name == "_to_copy" and args[0].device == META and kwargs.get("device") == torch.device("cpu"):
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        assert name not in UNSPECIFIED, name
        devices = {leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        assert len(devices) <= 1 or name in ("copy", "where"), f"{name} of {devices}"  # where: of a number
        if name in ("div", "true_divide"):
            assert isinstance(args[1], Tensor), f"divided by the number {args[1]}"
        if name == "cumsum":
            assert devices == {torch.device("cpu")}, "a scan, whose order is the device's"
        return func(*args, **kwargs)


def run(numbers: Fp8Block128 | Int4, weight: Tensor) -> QuantizedWeight:
    """Everything that a conversion asks of a scheme."""
    importance = (torch.ones(weight.shape[1]),) if numbers.weighted else ()  # of the CPU, as calibration gives it
    made = numbers.plain(weight, *importance)
    made.squared_error(weight)
    numbers.bound(weight, made.scales, made.zeros)
    made.dequantize()
    return made


@pytest.mark.parametrize("shape", [(300, 200), (1, 1), (5, 4096)], ids=str)
@pytest.mark.parametrize("numbers", SCHEMES, ids=str)
def test_nothing_leaves_the_device(numbers: Any, shape: tuple[int, int]) -> None:
    with Portable():
        made = run(numbers, torch.empty(shape, dtype=torch.bfloat16, device=META))
    parts = [part for part in (made.codes, made.scales, made.zeros) if part is not None]
    assert {part.device.type for part in parts} == {"meta"}
    for part, (_, wanted) in zip(parts, numbers.layout(shape).values(), strict=True):
        assert tuple(part.shape) == wanted


@pytest.mark.parametrize(
    "fault",
    [
        lambda x: x / 448.0,
        lambda x: x / torch.tensor(448.0),
        lambda x: x.double().cumsum(0),
        lambda x: torch.pow(2.0, x),
        lambda x: x + torch.ones(4),
    ],
)
def test_the_guard_sees_faults(fault: Callable[[Tensor], Tensor]) -> None:
    with Portable(), pytest.raises(AssertionError):
        fault(torch.empty(4, device=META))


@pytest.mark.parametrize("scale_type", ["f32", "bf16"])
def test_a_reciprocal_would_give_other_bytes(scale_type: str) -> None:
    """What a GPU computes for `amax / 448.0`."""
    amax = EVERY_BF16[(EVERY_BF16 > 1e-30) & (EVERY_BF16.float() < 1e30)].float()
    other = amax * torch.tensor(1 / 448.0)
    if scale_type == "bf16":
        # Next to a tie; weights of FP32 get there, those of BF16 do not.
        amax = (torch.arange(0x3F80, 0x4000).bitwise_left_shift(16) + 0x8000).to(torch.int32).view(torch.float32) * 448
        other = amax * torch.tensor(1 / 448.0)
    got = Fp8Block128(scale_type)._scales(amax)
    wrong = other.bfloat16().float() if scale_type == "bf16" else other
    assert (got != wrong).any()


def test_a_reciprocal_would_move_scales_of_zero_points() -> None:
    found = torch.rand(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (found / 15 != found * (1 / 15)).any()


def test_a_scan_would_give_another_sum() -> None:
    """Pairs first, as a GPU does, against one after the other."""
    sums = torch.rand(4096, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pairs = sums.clone()
    while len(pairs) > 1:
        pairs = pairs[0::2] + pairs[1::2]
    assert float(pairs) != scheme.add_rows(sums)


@pytest.mark.parametrize(
    "numbers", [Fp8Block128(), Fp8Block128("pow2"), Int4(64), Int4(128, "f32", "imatrix", True)], ids=str
)
def test_larger_pieces_change_nothing(numbers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The size of pieces on a GPU, tried on a CPU."""
    weight = fused.sample()
    want = run(numbers, weight)
    monkeypatch.setattr(scheme, "CPU_CHUNK", scheme.DEVICE_CHUNK)
    got = run(numbers, weight)
    assert_same(got, want)


def assert_same(got: QuantizedWeight, want: QuantizedWeight) -> None:
    for part in ("codes", "scales", "zeros"):
        one, other = getattr(got, part), getattr(want, part)
        assert (one is None) == (other is None)
        if one is not None:
            assert one.dtype == other.dtype
            assert torch.equal(one.cpu().view(torch.uint8), other.view(torch.uint8)), part


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def gpu_cases() -> Iterator[tuple[str, Tensor]]:
    """The sample of every kind of number, all of BF16, ties, blocks cut short, one number, many rows."""
    yield "sample", fused.sample()
    yield "fp32", torch.randn(200, 333, generator=torch.Generator().manual_seed(5))
    yield "every bf16 number", torch.nn.functional.pad(USABLE, (0, -len(USABLE) % 257)).view(-1, 257)
    generator = torch.Generator().manual_seed(1)
    yield "shuffled", USABLE[torch.randperm(len(USABLE) // 300 * 300, generator=generator)].view(-1, 300)
    yield "ties", (torch.randint(-16, 17, (130, 256), generator=generator) / 2).bfloat16()
    for rows, columns in ((1, 1), (127, 129), (129, 127), (1000, 2048)):
        yield f"{rows}x{columns}", torch.randn(rows, columns, generator=generator).mul(0.02).bfloat16()


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("numbers", SCHEMES, ids=str)
def test_a_gpu_gives_the_bytes_of_a_cpu(numbers: Any) -> None:
    for name, weight in gpu_cases():
        importance = (torch.arange(weight.shape[1]).remainder(7.0),) if numbers.weighted else ()
        want, there = numbers.plain(weight, *importance), weight.cuda()
        got = numbers.plain(there, *importance)
        assert_same(got, want)
        assert got.squared_error(there) == want.squared_error(weight), name
        assert torch.equal(got.dequantize().cpu(), want.dequantize()), name


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("numbers", [Fp8Block128(), Int4()], ids=str)
def test_a_gpu_locates_unusable_values(numbers: Any) -> None:
    weight = torch.ones(300, 300)
    weight[200, 7] = weight[201, 3] = float("nan")
    with pytest.raises(UnusableWeight, match=r"\[200, 7\] is nan"):
        numbers.plain(weight.cuda())

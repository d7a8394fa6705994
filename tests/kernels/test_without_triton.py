"""The package without triton: everything plain works, and a kernel's absence is one clear error naming the extra."""

import subprocess
import sys

import pytest
import torch

from qconvert_kernels import launch
from qconvert_kernels.errors import KernelsMissing

SCRIPT = """
import sys
sys.modules["triton"] = None  # as if it were not installed
import torch
import qconvert_kernels.compiled
import qconvert_kernels.fp8_gemm.naive, qconvert_kernels.int4_gemm.naive, qconvert_kernels.quantize_activations.naive
from qconvert_kernels import fp8_gemm, int4_gemm, quantize_activations, quantize_weights
from qconvert_kernels.launch import available

x = torch.randn(2, 128).bfloat16()
codes = torch.zeros(4, 128, dtype=torch.int8)
packed = int4_gemm.repack(codes, torch.ones(4, 1), group=128)
quantized = quantize_activations.naive.quantize(x)
fp8_gemm.naive.fp8_block_gemm_nt(quantized, codes.to(torch.float8_e4m3fn), torch.ones(1, 1))
int4_gemm.naive.int4_gemm_nt(x, packed)
quantize_weights.naive.fp8_block128(x)
assert quantize_weights.offer("fp8-block128", {"scale_type": "bf16"}, torch.device("cuda")) is None
print(available("cpu"))
for kernel in (
    lambda: quantize_activations.quantize(x),
    lambda: fp8_gemm.fp8_block_gemm_nt(x, codes.to(torch.float8_e4m3fn), torch.ones(1, 1)),
    lambda: int4_gemm.int4_gemm_nt(x, packed),
    lambda: quantize_weights.fp8_block128(x),
    lambda: quantize_weights.int4(x, 64),
):
    try:
        kernel()
    except ImportError as error:
        print(type(error).__name__, error)
"""


def test_kernels_are_missed_by_name() -> None:
    env = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=env)
    first, *errors = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert "pip install 'qconvert[kernels]'" in first
    assert errors == [f"KernelsMissing {KernelsMissing()}"] * 5


def test_an_import_error_of_our_own_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise ImportError("a bug", name="qconvert_kernels.gone")

    monkeypatch.setattr(launch, "import_module", fail)
    with pytest.raises(ImportError, match="a bug"):
        launch.load_kernels("gone")


@pytest.mark.parametrize(
    ("capability", "reason"), [((8, 0), "e4m3 needs compute capability 8.9"), ((8, 9), None), ((9, 0), None)]
)
def test_available(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], reason: str | None) -> None:
    pytest.importorskip("triton", reason="the kernels need triton")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "some device")
    found = launch.available("cuda")
    assert found is None if reason is None else reason in str(found)
    assert launch.available("cpu") == "the kernels need a CUDA device, this is cpu"

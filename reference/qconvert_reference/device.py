"""Where lanes compute: `--device auto | cpu | cuda | cuda:N`.

On a GPU three of torch's defaults trade digits for speed, which a reference must not: convolutions in fp32 run on TF32
(11 bits), BF16 products may add their partial sums in BF16, and FP16 ones likewise. `choose_device` turns them off for
the process. Products in fp32 keep full precision by torch's default.

Results on two devices differ by the order of sums, as two engines do; no bound in this project depends on it.
"""

from __future__ import annotations

import torch

from qconvert.errors import UserError


def choose_device(asked: str) -> torch.device:
    """The device meant; UserError where it does not exist here. "auto" is the first GPU, or else the CPU."""
    if asked == "auto":
        asked = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(asked)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UserError("unknown device", expected="auto, cpu, cuda or cuda:N", found=asked)
    if device.type == "cuda":
        _check_cuda(device)
        _keep_digits()
    return device


def memory_for_weights(device: torch.device, otherwise: int) -> int:
    """Bytes of weights that may be held on the device at once: three quarters of what is free on a GPU, which leaves
    room for activations; `otherwise` on a CPU, where nobody can say what else the memory is meant for."""
    if device.type != "cuda":
        return otherwise
    free, _ = torch.cuda.mem_get_info(device)
    return free // 4 * 3


def describe(device: torch.device) -> str:
    """Its name, for records."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _check_cuda(device: torch.device) -> None:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        found = f"{count} CUDA devices" if count else f"no CUDA device that torch {torch.__version__} can use"
        raise UserError(f"there is no device {device}", found=found, fix="leave --device out, or give --device cpu")


def _keep_digits() -> None:
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False

"""What every launch needs: kernels imported only when asked for, a device that can run them, its name and size."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from qconvert_kernels.errors import BadInput, KernelsMissing

SMS_OF_AN_H200 = 132


def load_kernels(module: str) -> ModuleType:
    """`qconvert_kernels.<module>`, which imports triton."""
    try:
        return import_module(f"qconvert_kernels.{module}")
    except ImportError as error:
        if error.name is not None and error.name.split(".")[0] == "triton":
            raise KernelsMissing from error
        raise


def available(device: torch.device | str) -> str | None:
    """None if the kernels run on this device, else why not, in words."""
    try:
        interpreting = bool(load_kernels("numerics").INTERPRETING.value)
    except KernelsMissing as error:
        return str(error)
    if interpreting:
        return None
    device = torch.device(device)
    if device.type != "cuda":
        return f"the kernels need a CUDA device, this is {device}"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 9):
        return f"e4m3 needs compute capability 8.9 or later, {device_name(device)} has {capability[0]}.{capability[1]}"
    return None


def device_name(device: torch.device) -> str:
    """As the configurations spell it; a CPU (interpreting) has none of its own."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "default"


def on(device: torch.device) -> AbstractContextManager[object]:
    """Launches inside go to this device, which need not be the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def processors(device: torch.device) -> int:
    """How many programs run at the same time; that of an H200 where no device is asked."""
    if device.type != "cuda":
        return SMS_OF_AN_H200
    return torch.cuda.get_device_properties(device).multi_processor_count


def check_devices(**tensors: Tensor | None) -> None:
    """All on one device."""
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        raise BadInput(
            f"tensors on different devices: {', '.join(f'{name} {where}' for name, where in devices.items())}"
        )


def check(name: str, tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...]) -> None:
    """Shape (-1: any) and dtype as expected, and neighbours of the last dimension side by side."""
    fits = tensor.dim() == len(shape) and all(want in (-1, got) for want, got in zip(shape, tensor.shape, strict=True))
    if not fits or tensor.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        found = f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        raise BadInput(f"{name}: expected {list(shape)} {wanted}, found {found}")
    if tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        raise BadInput(f"{name}: the last dimension must be contiguous, its stride is {tensor.stride(-1)}")

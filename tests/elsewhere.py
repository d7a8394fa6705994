"""A second device for machines that have none: tensors that say they live elsewhere and compute on the CPU.

    with second_device() as device:
        y = model(x.to(device))          # the CPU's numbers to the bit
        x + y                            # TwoDevices: a real GPU would refuse it as well

So code that forgets to move a tensor fails in a test without a GPU. The pretended device is called "meta", because
torch lets any build name that one. What a GPU allows is allowed: copies in both directions, and CPU tensors of no
dimensions beside its own. What it also allows, indexing with a CPU tensor, is refused: it waits for the device.
`torch.tensor(..., device=device)` is not seen from here and gives a real meta tensor, which then mixes with nothing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ELSEWHERE, HERE = torch.device("meta"), torch.device("cpu")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class TwoDevices(AssertionError):
    """An operation was given tensors on two devices."""


class Elsewhere(Tensor):
    """A tensor on the pretended device; `held` has its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Elsewhere":
        one = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=ELSEWHERE,
        )
        one.held = held
        return one

    def __repr__(self) -> str:
        return f"Elsewhere({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})


class _Watch(TorchDispatchMode):
    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(operation, args, kwargs or {})


@contextmanager
def second_device() -> Iterator[torch.device]:
    """The device's name; outside of this it does not exist. Tensors of this kind know no inference mode."""
    with _Watch(), patch.object(torch, "inference_mode", torch.no_grad):
        yield ELSEWHERE


def _run(operation: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    away = [tensor for tensor in tensors if isinstance(tensor, Elsewhere)]
    here = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere)]
    if away and operation not in COPIES and any(tensor.dim() for tensor in here):
        raise TwoDevices(str(operation))
    asked = kwargs.get("device")
    if operation is torch.ops.aten.copy_.default:
        target = args[0].device
    else:
        target = asked if asked is not None else ELSEWHERE if away else HERE
    args, kwargs = tree_map(lambda leaf: leaf.held if isinstance(leaf, Elsewhere) else leaf, (args, kwargs))
    if asked is not None:
        kwargs["device"] = HERE
    same = {id(tensor.held): tensor for tensor in away}  # an operation in place gives back what it was given
    found = operation(*args, **kwargs)
    if torch.device(target) != ELSEWHERE:
        return found
    return tree_map(lambda leaf: _away(leaf, same), found)


def _away(leaf: Any, same: dict[int, Elsewhere]) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    return same[id(leaf)] if id(leaf) in same else Elsewhere(leaf)

"""Kernels and naive twins can stand in for each other."""

from inspect import signature

from qconvert_kernels.registry import KERNELS
from qconvert_kernels.tiling import STEP_BYTES


def test_twins_take_the_same_arguments() -> None:
    assert set(KERNELS) == set(STEP_BYTES)
    for kernel in KERNELS.values():
        run, naive = signature(kernel.run).parameters, signature(kernel.naive).parameters
        assert list(run)[:-1] == list(naive)[:-1]
        assert (list(run)[-1], list(naive)[-1]) == ("tiling", "accumulate")
        assert all(run[name].default == naive[name].default for name in list(run)[:-1])

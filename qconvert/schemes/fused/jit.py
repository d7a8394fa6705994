"""numba as the loops use it: without the interpreter's lock, IEEE arithmetic as written (no reassociation, no
contraction, division by zero gives infinity), compiled on first use and kept in numba's cache.

The cache lies in `__pycache__` beside the loops, else in the user's cache folder, else there is none and every process
compiles. numba looks at the time and size of a loop's own file alone to see whether a kept one is current. So a loop
calls only functions of its own file, takes constants of other modules as arguments, and is checked on first use.
"""

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast

import numba
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Number: TypeAlias = Any  # a numpy scalar inside of a loop, whose type numba infers

Function = TypeVar("Function", bound=Callable[..., Any])


def step(function: Function) -> Function:
    """A function for use inside loops."""
    return cast(Function, numba.njit(nogil=True, error_model="numpy")(function))


def loop(function: Function) -> Function:
    """A function to be called from Python."""
    try:
        return cast(Function, numba.njit(nogil=True, error_model="numpy", cache=True)(function))
    except RuntimeError:  # no folder to keep it in
        return step(function)

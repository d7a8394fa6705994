"""Number formats by name. A scheme is there when its file is there: `fp8_block128.py` is `--scheme fp8-block128`."""

import functools
import importlib
import pkgutil

from qconvert.errors import UserError
from qconvert.schemes.scheme import QuantizedWeight, Scheme, UnusableWeight, relative_error

__all__ = [
    "QuantizedWeight",
    "Scheme",
    "UnusableWeight",
    "get_scheme",
    "relative_error",
    "scheme_names",
]


def scheme_names() -> list[str]:
    """The public names of all schemes, read off the files of this package."""
    modules = (module.name for module in pkgutil.iter_modules(__path__) if not module.ispkg)
    return sorted(name.replace("_", "-") for name in modules if name != "scheme")


@functools.cache
def get_scheme(name: str, *, scales: str = "bf16", method: str | None = None, asymmetric: bool = False) -> Scheme:
    """The scheme of that name.

    `scales` says in which type and with which rounding its scales are stored, `method` how they are chosen (None: the
    scheme's default; it matters to whoever quantizes), `asymmetric` asks for zero points.
    """
    if name not in scheme_names():
        raise UserError(
            f"unknown scheme {name!r}", expected=", ".join(scheme_names()), fix="give one of these as --scheme"
        )
    module = importlib.import_module(f"qconvert.schemes.{name.replace('-', '_')}")
    scheme: Scheme = module.make(scales=scales, method=method, asymmetric=asymmetric)
    return scheme

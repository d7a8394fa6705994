"""Which options of a conversion concern which of its schemes, where a recipe names several.

`--method` and `--asymmetric` speak of INT4. `--scales` speaks of the scheme given as --scheme; beside INT4, whose
scales are BF16 then, it speaks of FP8.
"""

from collections.abc import Iterable
from typing import Any

FP8, INT4 = "fp8-block128", "int4-"
DEFAULT_METHOD = "mse"


def options_by_scheme(
    schemes: Iterable[str], main: str, *, scales: str, method: str | None, asymmetric: bool
) -> dict[str, dict[str, Any]]:
    """Keyword arguments of `get_scheme` for the main scheme and every other one that a recipe names."""
    names = list(dict.fromkeys([main, *schemes]))
    given = {"scales": scales, "method": method, "asymmetric": asymmetric}
    if len(names) == 1:
        return {main: given}
    beside = any(not name.startswith(INT4) for name in names)
    int4 = {"scales": "bf16" if beside else scales, "method": method, "asymmetric": asymmetric}
    return {name: dict(int4) if name.startswith(INT4) else {"scales": scales} for name in names}


def default_format(*schemes: str) -> str:
    """The format that most engines load a folder with these schemes from."""
    return "compressed-tensors" if any(name.startswith(INT4) for name in schemes) else "fp8"

"""Numbers of bytes as people write them: 1 GB = 10**9 bytes, as disks and the hub count; GiB is read, never written."""

import re

from qconvert.errors import UserError

DECIMAL = ("B", "kB", "MB", "GB", "TB", "PB")
FACTORS = {"": 1, "B": 1} | {unit.upper(): 1000**power for power, unit in enumerate(DECIMAL)}
FACTORS |= {letter: 1000**power for power, letter in enumerate("KMGTP", start=1)}
FACTORS |= {f"{letter}IB": 1024**power for power, letter in enumerate("KMGTP", start=1)}


def format_bytes(count: int) -> str:
    """162649725440 -> "162.6 GB": three or four significant digits."""
    value = float(count)
    for unit in DECIMAL:
        if value < 1000 or unit == DECIMAL[-1]:
            break
        value /= 1000
    if unit == "B":
        return f"{count} B"
    return f"{value:.2f} {unit}" if value < 100 else f"{value:.1f} {unit}"


def parse_bytes(text: str) -> int:
    """ "8GB", "1.5 GiB", "500M" or "1000" -> bytes; refuses anything else by name."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    factor = FACTORS.get(match.group(2).upper()) if match else None
    if match is None or factor is None or float(match.group(1)) == 0:
        raise UserError("not a size in bytes", expected="a number with a unit, such as 8GB or 1.5GiB", found=repr(text))
    return int(float(match.group(1)) * factor)

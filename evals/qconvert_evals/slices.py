"""What a measurement's slice says, condition by condition.

Grammar: `all`, or `key=value` joined by commas, such as `layer=7,feed=local`. A part without `=` goes on with the value
before it, so a comma in the name of a domain or of a filter stays in the name. Left out: a comma followed by an `=` in
a value, which reads as the next condition; whoever makes slices keeps those two apart (`data`).
"""

from __future__ import annotations


def conditions(slice_: str) -> dict[str, str]:
    """`layer=7,feed=local` -> {"layer": "7", "feed": "local"}; `all` -> {"all": ""}."""
    found: dict[str, str] = {}
    last = ""
    for part in slice_.split(","):
        key, equals, value = part.partition("=")
        if equals or not last:
            last = key.strip()
            found[last] = value.strip()
        else:
            found[last] = f"{found[last]},{part}"
    return found

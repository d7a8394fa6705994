r"""Which modules are not quantized, said as briefly as is safe.

Engines compare their own module paths, merged ones included, with a list in config.json; each format has its own way.
For formats that know patterns, the shortest run of dotted segments is taken that covers a kept module and touches no
converted one: `self_attn` for `model.layers.3.self_attn.qkv_proj`, `mlp.gate` where experts have a `gate_proj`.
A leading segment is tied to the start: `^mtp(\..*)?$`. The full path is the last resort.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple


class Run(NamedTuple):
    """Dotted segments that occur in module paths, at their start if `leading`."""

    text: str
    leading: bool

    @property
    def pattern(self) -> str:
        """A regular expression that matches every path with these segments, from its start to its end."""
        return ("^" if self.leading else r"^(.*\.)?") + re.escape(self.text) + r"(\..*)?$"

    def covers(self, module: str) -> bool:
        """Whether the segments occur in the path."""
        if self.leading:
            return f"{module}.".startswith(f"{self.text}.")
        return f".{self.text}." in f".{module}."


def shortest_runs(
    kept: Iterable[str], converted: Collection[str], hits: Callable[[Run, str], bool] = Run.covers
) -> list[Run]:
    """Runs that together cover all kept modules and none of the converted ones; `hits` is how the engine compares."""
    # Modules that differ in numbers only give the same answers: one of each kind stands for all of them where it can.
    kinds = {re.sub(r"\.\d+(?=\.)", ".0", module) for module in converted}
    runs: list[Run] = []
    tried: dict[Run, bool] = {}
    for module in kept:
        if any(hits(run, module) for run in runs):
            continue
        for run in _candidates(module):
            if run not in tried:
                among = converted if any(part.isdecimal() for part in run.text.split(".")) else kinds
                tried[run] = not any(hits(run, other) for other in among)
            if tried[run]:
                runs.append(run)
                break
        else:
            runs.append(Run(module, True))
    return runs


def covered(patterns: Mapping[str, Callable[[str], bool]], modules: Collection[str]) -> dict[str, set[str]]:
    """Entries to the modules for which their test is true."""
    return {entry: {module for module in modules if test(module)} for entry, test in patterns.items()}


def regex_test(pattern: str, *, anywhere: bool = False) -> Callable[[str], bool]:
    """A test for a regular expression, matched from the start or searched; one that cannot be read covers nothing."""
    try:
        compiled = re.compile(pattern)
    except re.error:
        return lambda module: False
    find = compiled.search if anywhere else compiled.match
    return lambda module: find(module) is not None


def _candidates(module: str) -> Iterable[Run]:
    """Runs of a path from short to long; those of numbers alone say nothing."""
    parts = module.split(".")
    for length in range(1, len(parts) + 1):
        for start in range(len(parts) - length + 1):
            run = parts[start : start + length]
            if not all(part.isdecimal() for part in run):
                yield Run(".".join(run), start == 0)

"""Where metrics put their measurements, and the slices by domain that most of them share.

A number that is missing or not finite becomes a measurement without value plus an entry that says why, in one place,
so that no metric can drop or zero one by accident.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from qconvert_evals.results import Measurement, Missing
from qconvert_evals.statistics import Estimate, Index

Mask = npt.NDArray[np.bool_]
FIRST_STRETCH = 128  # tokens; a state that has read fewer is still filling up


@dataclass
class Found:
    """Measurements of one lane, and what could not be measured."""

    lane: str
    measurements: list[Measurement] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)

    def add(self, name: str, slice: str, unit: str, estimate: Estimate, why: str = "nothing to measure here") -> None:
        """Record one estimate; `why` is the explanation in case that it has no value."""
        value, low, high = estimate.value, estimate.low, estimate.high
        if value is not None and not math.isfinite(value):
            value, why = None, f"the value is {value}"
        if value is None:
            low = high = None
            self.missing.append(Missing(name, self.lane, slice, why))
        low, high = (None if bound is None or not math.isfinite(bound) else bound for bound in (low, high))
        exact = estimate.exact and value is not None
        row = Measurement(name, self.lane, slice, value, unit, estimate.n, low, high, exact=exact)
        self.measurements.append(row)

    def absent(self, names: Sequence[tuple[str, str, str]], why: str) -> None:
        """Record (name, slice, unit) rows that could not be measured at all."""
        for name, slice_name, unit in names:
            self.add(name, slice_name, unit, Estimate(None, 0), why)


def by_domain(documents: Index, domains: Sequence[str]) -> Iterator[tuple[str, Mask]]:
    """Slice names with their masks: "all", then every domain that occurs, in alphabetical order.

    `documents` holds the document number of each row, `domains` the domain of each document.
    """
    yield "all", np.ones(len(documents), dtype=np.bool_)
    labels = np.asarray(domains, dtype=object)[documents] if len(documents) else np.zeros(0, dtype=object)
    for domain in sorted(set(labels.tolist())):
        yield f"domain={domain}", labels == domain


def by_stretch(positions: Index) -> Iterator[tuple[str, Mask]]:
    """Slice names with their masks, by how much text came before: "at=0-127", "at=128-255", "at=256-511", ... doubling.

    None where all positions lie in the first, since that would say again what "all" says.
    """
    stretches = stretch_of(positions)
    if len(positions) and stretches.max() > 0:
        for number in np.unique(stretches).tolist():
            yield stretch_name(number), stretches == number


def stretch_of(positions: Index) -> Index:
    """Number of the stretch of each position: 0 below 128, 1 below 256, 2 below 512, ..."""
    _, exponents = np.frexp(np.asarray(positions) // FIRST_STRETCH)  # 2^(e-1) <= x < 2^e; 0 for 0
    return np.asarray(exponents, dtype=np.int64)


def stretch_name(number: int) -> str:
    """Its slice."""
    first = 0 if number == 0 else FIRST_STRETCH << (number - 1)
    return f"at={first}-{(FIRST_STRETCH << number) - 1}"


def join(*parts: str) -> str:
    """Slice name of several conditions; "all" adds none: join("position=1", "all") == "position=1"."""
    return ",".join(part for part in parts if part and part != "all") or "all"

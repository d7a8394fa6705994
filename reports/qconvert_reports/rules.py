"""One row of a budget: a bound on a measurement, and what is held against it.

    bound                            holds where
    max, min                         value <= L, value >= L
    max_abs                          |value| <= L
    max_difference_from_base, min_…  value - BF16's value <= L, >= L        (paired where the record holds the pairs)
    max_abs_difference_from_base     |value - BF16's value| <= L
    max_times_noise, min_…           value <= L |noise floor|, >= L |noise floor|
    max_abs_times_noise              |value| <= L |noise floor|
    min_overlap_at_noise             value >= expected overlap of k of E experts whose logits get relative noise L, with
                                     the model's own k and E (`routing_noise`)

Two-sided rows are for numbers that should not move at all: a broken verifier accepts too much, not too little. A noise
floor has a sign where the measurement has one (a difference), and only its size is a scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from qconvert_reports.labels import conditions

AT_MOST, AT_LEAST, WITHIN = "<=", ">=", "within"
VALUE, DIFFERENCE, NOISE, OVERLAP = "value", "difference", "noise", "overlap"
# Bound key -> (side of the bound that is allowed, what is held against it).
BOUNDS: dict[str, tuple[str, str]] = {
    "max": (AT_MOST, VALUE),
    "min": (AT_LEAST, VALUE),
    "max_abs": (WITHIN, VALUE),
    "max_difference_from_base": (AT_MOST, DIFFERENCE),
    "min_difference_from_base": (AT_LEAST, DIFFERENCE),
    "max_abs_difference_from_base": (WITHIN, DIFFERENCE),
    "max_times_noise": (AT_MOST, NOISE),
    "min_times_noise": (AT_LEAST, NOISE),
    "max_abs_times_noise": (WITHIN, NOISE),
    "min_overlap_at_noise": (AT_LEAST, OVERLAP),
}
# Unit in a budget -> the units of measurements that it fits, with the factor to each.
UNITS: dict[str, dict[str, float]] = {
    "nats": {"nats": 1.0},
    "fraction": {"fraction": 1.0},
    "%": {"%": 1.0, "fraction": 0.01},
    "pp": {"%": 1.0, "fraction": 0.01},
    "ratio": {"ratio": 1.0},
    "dB": {"dB": 1.0},
    "tokens": {"tokens": 1.0},
    "count": {"count": 1.0},
    "bytes": {"bytes": 1.0},
    "ppl": {"ppl": 1.0},
}


@dataclass(frozen=True)
class Rule:
    """One row of a budget."""

    section: str
    measurement: str
    slice: str
    bound: str  # a key of BOUNDS
    limit: float
    why: str
    unit: str | None = None
    min_n: int = 0
    only_if_base_has: bool = False

    @property
    def name(self) -> str:
        """What verdict rows and JUnit call this rule."""
        return f"{self.section}: {self.measurement} ({self.slice}) {self.bound}"

    @property
    def side(self) -> str:
        """Which side of the bound is allowed."""
        return BOUNDS[self.bound][0]

    @property
    def against(self) -> str:
        """What the bound is held against."""
        return BOUNDS[self.bound][1]

    def limit_in(self, unit: str) -> float | None:
        """The limit in a measurement's own unit; None where the row's unit does not fit it."""
        if self.unit is None or self.against in (NOISE, OVERLAP):
            return self.limit
        factor = UNITS[self.unit].get(unit)
        return None if factor is None else self.limit * factor

    def covers(self, measurement: str, slice_: str) -> bool:
        """Whether this row speaks about that measurement and slice."""
        return fnmatchcase(measurement, self.measurement) and slice_matches(slice_, self.slice)


@lru_cache(maxsize=1 << 16)  # a record of 48 layers asks the same few thousand questions once a lane
def slice_matches(slice_: str, pattern: str) -> bool:
    """`layer=7,feed=local` matches `layer=*,feed=local` and not `layer=*`: same keys in any order, a glob per value."""
    found, wanted = conditions(slice_), conditions(pattern)
    return found.keys() == wanted.keys() and all(fnmatchcase(found[key], glob) for key, glob in wanted.items())

"""The results as the judge asks for them: what a rule covers, what is missing and why, what BF16 has."""

from __future__ import annotations

from qconvert_evals.results import Measurement, Missing, Results, reference_of
from qconvert_reports.labels import conditions
from qconvert_reports.rules import Rule


class Record:
    """Measurements by lane and by key, and the reasons of missing ones."""

    def __init__(self, results: Results) -> None:
        self.by_lane: dict[str, list[Measurement]] = {}
        self.by_key = {(m.name, m.lane, m.slice): m for m in results.measurements}
        self.missing: list[Missing] = results.missing
        self.figures = results.figures
        self.base = next((lane.name for lane in results.lanes if lane.role == "base"), "")
        # The base, and the noise lane that is measured against it: those of candidates say nothing about BF16.
        self.references = [lane.name for lane in results.lanes if lane.role == "base"]
        self.references += [
            lane.name for lane in results.lanes if lane.role == "noise" and reference_of(lane.name) == self.base
        ]
        self.noise_of = {lane.name: lane.noise_lane for lane in results.lanes}
        model, tool = results.figures.get("model") or {}, results.tool
        router = model.get("experts_chosen"), model.get("experts")
        self.router = router if all(isinstance(one, int) and one > 0 for one in router) else None  # (k, E)
        self.context, self.longest = model.get("context"), tool.get("longest_sequence")  # tokens, None where unknown
        for one in results.measurements:
            self.by_lane.setdefault(one.lane, []).append(one)

    def measured(self, name: str, lane: str, slice_: str = "all") -> Measurement | None:
        """The measurement, None where it is absent or has no value."""
        one = self.by_key.get((name, lane, slice_))
        return None if one is None or one.value is None else one

    def value(self, name: str, lane: str, slice_: str = "all") -> float | None:
        """Its value."""
        one = self.measured(name, lane, slice_)
        return None if one is None else one.value

    def noise_of_value(self, one: Measurement) -> float:
        """How far the noise lane's value is from that of the lane that it is measured against; 0 where unknown."""
        quiet = self.value(one.name, reference_of(self.noise_of.get(one.lane) or ""), one.slice)
        return 0.0 if one.noise_floor is None or quiet is None else abs(one.noise_floor - quiet)

    def covered(self, lane: str, rule: Rule) -> list[Measurement]:
        """What the lane has of what the rule speaks about."""
        return [one for one in self.by_lane.get(lane, ()) if one.value is not None and rule.covers(one.name, one.slice)]

    def why_missing(self, lane: str, name: str, slice_: str) -> str | None:
        """The reason given for this slice or a wider one: what is missing for a draft step is so for every domain."""
        wanted = conditions(slice_).items()
        for one in self.missing:
            if (one.lane, one.name) == (lane, name) and (one.slice == "all" or conditions(one.slice).items() <= wanted):
                return one.why
        return None

    def absent(self, lane: str, rule: Rule) -> list[tuple[str, str, str]]:
        """(measurement, slice, why) of what the rule covers, the candidate lacks, and somebody knows of."""
        have = {(one.name, one.slice) for one in self.covered(lane, rule)}
        keys = [(one.name, one.slice) for name in self.references for one in self.covered(name, rule)]
        keys += [(one.name, one.slice) for one in self.missing if one.lane == lane and _speaks_of(rule, one)]
        keys += [
            (m.name, m.slice) for m in self.by_lane.get(lane, ()) if m.value is None and rule.covers(m.name, m.slice)
        ]
        gone = [key for key in dict.fromkeys(keys) if key not in have]
        return [(name, at, self.why_missing(lane, name, at) or "it is absent from the results") for name, at in gone]

    def base_lacks(self, rule: Rule) -> str | None:
        """Why BF16 has nothing for this rule, or None where it has something; what compares with BF16 (a divergence, a
        recovery) only its noise lane can have."""
        if any(self.covered(name, rule) for name in self.references):
            return None
        whys = [one.why for one in self.missing if one.lane == self.base and _speaks_of(rule, one)]
        return whys[0] if whys else "the base lane has no such measurement"

    def beyond_the_text(self) -> str:
        """The positions that the model has and no text reached, as a slice; "" where none are known to be left."""
        if not isinstance(self.context, int) or not isinstance(self.longest, int) or self.longest >= self.context:
            return ""
        return f"at={self.longest}-{self.context - 1}"

    def have_it(self, name: str, slice_: str) -> list[str]:
        """Reference lanes that have this measurement."""
        return [lane for lane in self.references if self.measured(name, lane, slice_) is not None]


def _speaks_of(rule: Rule, missing: Missing) -> bool:
    """A `missing` entry for the whole ("all") also takes away every slice that a rule may name."""
    return rule.covers(missing.name, missing.slice) or (
        missing.slice == "all" and rule.covers(missing.name, rule.slice)
    )

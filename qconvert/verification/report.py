"""What a verification found: a list of checks, each with the first tensors or files that failed it.

As JSON:  {"ok": bool, "target": path, "against": path | null, "tensors": n, "bytes": n,
           "checks": [{"name", "ok", "detail", "failures": n, "tensors": [first names]}]}
A check that could not run because what it needs is absent (no manifest, no source) is not listed as passed: it stands
in `skipped` with the reason.
"""

from dataclasses import asdict, dataclass, field, replace
from typing import Any

NAMED = 10  # how many failing tensors a check names

Wrong = tuple[str, str]  # the name of a check, and what is wrong


@dataclass(frozen=True)
class Check:
    """One question and its answer."""

    name: str
    ok: bool
    detail: str
    tensors: tuple[str, ...] = ()
    failures: int = 0


@dataclass(frozen=True)
class VerifyReport:
    """All checks of one folder."""

    target: str
    against: str | None
    checks: list[Check]
    skipped: dict[str, str] = field(default_factory=dict)
    tensors: int = 0
    bytes: int = 0

    @property
    def ok(self) -> bool:
        """True when every check that ran has passed."""
        return all(check.ok for check in self.checks)

    def with_size(self, tensors: int, size: int) -> "VerifyReport":
        """The report with the amount that was read."""
        return replace(self, tensors=tensors, bytes=size)

    def to_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {"ok": self.ok, **asdict(self)}


class Findings:
    """Collects the failures of one check: each is the name of a tensor or file and what is wrong with it."""

    def __init__(self, name: str, passed: str) -> None:
        self.name = name
        self.passed = passed
        self.failures = 0
        self.named: dict[str, str] = {}

    def add(self, subject: str, wrong: str) -> None:
        """Record a failure; only the first ones keep their text."""
        self.failures += 1
        if len(self.named) < NAMED:
            self.named.setdefault(subject, wrong)

    def check(self) -> Check:
        """The check that these findings make."""
        if not self.failures:
            return Check(self.name, True, self.passed)
        lines = [f"{subject}: {wrong}" for subject, wrong in self.named.items()]
        if self.failures > len(lines):
            lines.append(f"… {self.failures - len(lines)} more")
        return Check(self.name, False, "\n".join(lines), tuple(self.named), self.failures)

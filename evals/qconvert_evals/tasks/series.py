"""What a lane gave on the tasks, as plain records: no lm-eval in here, so pairing and measuring need none."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Key(NamedTuple):
    """What a series is of; the filter "none" is no filter."""

    task: str
    metric: str
    filter: str


class Identity(NamedTuple):
    """What was asked about a document, as hashes; the prompt's covers contexts, continuations and settings."""

    document: str
    prompt: str
    target: str


@dataclass
class Series:
    """One metric of one task: a value per document; lm-eval's own aggregate; whether more is better."""

    values: dict[int, Any] = field(default_factory=dict)
    identities: dict[int, Identity] = field(default_factory=dict)
    clusters: dict[int, str] = field(default_factory=dict)  # documents of one cluster are no independent draws
    clustered_by: str | None = None  # the field of the documents that says so
    aggregate: float | None = None
    higher_is_better: bool | None = None


@dataclass(frozen=True)
class Thought:
    """What one output's thought was like."""

    task: str
    document: int
    tokens: int
    cut_off: bool


@dataclass(frozen=True)
class LaneRun:
    """Everything that one lane gave."""

    lane: str
    series: dict[Key, Series]
    thoughts: list[Thought]
    cut: int = 0  # requests that lost their beginning because they were longer than the model's context
    members: dict[str, list[str]] = field(default_factory=dict)  # group -> its tasks, where the group pools documents
    groups: dict[Key, float] = field(default_factory=dict)  # lm-eval's aggregate of a group

"""Which documents of a task hang together: several questions about one passage are answered or missed together.

A task says so by naming a field of its documents as `cluster` in its `metadata`. Where it does not, the fields in which
tasks commonly keep a passage or its number are looked at, over the whole data set, so that the answer does not depend
on --limit. A field counts where

    every document has it, as text or a whole number that is not empty,
    some documents share a value, and not all of them do (a constant says nothing).

Of several, the one with the fewest values is taken, since whoever shares a passage shares its article as well.

Left out: passages that are alike but not equal, and those that stand only within the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

FIELDS = (
    "passage", "context", "story", "article", "paragraph", "document", "background", "support", "table",
    "passage_id", "context_id", "story_id", "article_id", "paragraph_id", "document_id", "group_id", "source_id",
)  # fmt: skip


def cluster_field(documents: Iterable[Mapping[str, Any]]) -> str | None:
    """The field by which documents hang together, None where none says that they do."""
    values: dict[str, set[str]] = {name: set() for name in FIELDS}
    count = 0
    for document in documents:
        count += 1
        for name in list(values):
            value = label(document.get(name))
            if value is None:
                del values[name]
            else:
                values[name].add(value)
        if not values:
            return None
    shared = {name: len(found) for name, found in values.items() if 1 < len(found) < count}
    return min(shared, key=lambda name: shared[name]) if shared else None


def label(value: Any) -> str | None:
    """A value as a cluster's name; None where it is no text or whole number, or empty."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return None
    return str(value).strip() or None

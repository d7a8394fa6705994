"""Which rows of tokens begin alike, so that the beginning is run once: few-shot examples, a passage and its answers.

A family is rows that share `shared` tokens. They are run once, and every row goes on from a copy of the state behind
them (keys and values, the last inputs of the convolution, the memory of the delta rule). With k rows that saves
(k - 1) * shared tokens; a row joins the family before it, in sorted order, where that saves no less. A family
that does not cost a third less than its rows alone is given up: two products of half the size read all weights twice.

`shared` is a whole number of the delta rule's chunks, so that those are the same ones as without sharing, and never
reaches a token whose logits are wanted. What changes is the shape of the products, and with it their rounding, as
between a request alone and in a batch. Families depend on tokens alone, so all lanes of a comparison share alike.

Left out: families within families, and beginnings shorter than SHORTEST tokens, where smaller batches cost what is won.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from qconvert_reference.delta_rule import CHUNK

SHORTEST = 4 * CHUNK
REMEMBERED = 1 << 16  # tokens, times rows, of which a batch may hold copies: 130 MB of keys and values in the 80B model

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Family:
    """Numbers of rows that begin with the same `shared` tokens; a row alone shares none."""

    shared: int
    rows: tuple[int, ...]


def families(rows: Sequence[Tokens], wanted: Sequence[int]) -> list[Family]:
    """Every row in one family; `wanted` is the first position of each row whose logits are needed."""
    order = sorted(range(len(rows)), key=lambda number: rows[number])
    found: list[Family] = []
    for number in order:
        if found:
            last = found[-1]
            limit = min(wanted[one] for one in (last.rows[0], number)) if not last.shared else wanted[number]
            common = min(limit, _common(rows[last.rows[0]], rows[number])) // CHUNK * CHUNK
            common = min(common, last.shared) if last.shared else common
            if common >= SHORTEST and common * len(last.rows) >= last.shared * (len(last.rows) - 1):
                found[-1] = Family(common, (*last.rows, number))
                continue
        found.append(Family(0, (number,)))
    return [one for family in found for one in _worthwhile(rows, family)]


def _worthwhile(rows: Sequence[Tokens], family: Family) -> list[Family]:
    """The family, or each of its rows alone."""
    saved, alone = family.shared * (len(family.rows) - 1), sum(len(rows[row]) for row in family.rows)
    return [family] if 3 * saved >= alone else [Family(0, (row,)) for row in family.rows]


def _common(one: Tokens, other: Tokens) -> int:
    """Tokens that both begin with. In sorted order, what first and last row share is shared by all between."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


@dataclass(frozen=True)
class Batch:
    """Rows that are run together, each behind `shared` tokens that it has in common with the rows of its family."""

    shared: int
    prefixes: tuple[Tokens, ...]  # of `shared` tokens each; none where nothing is shared
    owners: tuple[int, ...]  # which prefix each row goes on from
    rows: tuple[int, ...]

    @property
    def is_shared(self) -> bool:
        """Whether there is a prefix to run first."""
        return self.shared > 0


def batches(rows: Sequence[Tokens], found: Sequence[Family], tokens: int) -> list[Batch]:
    """Batches of at most about `tokens` tokens, prefixes included; rows of similar length together."""
    alone = [family.rows[0] for family in found if not family.shared]
    made = [Batch(0, (), (), part) for part in _similar(rows, alone, tokens, 0)]
    for family in (one for one in found if one.shared):
        room = max(tokens - family.shared, tokens // 4)
        for part in _similar(rows, family.rows, room, family.shared):
            prefix = rows[part[0]][: family.shared]
            made.append(Batch(family.shared, (prefix,), (0,) * len(part), part))
    return _joined(rows, made, tokens)


def _similar(rows: Sequence[Tokens], numbers: Sequence[int], tokens: int, shared: int) -> list[Tokens]:
    """Row numbers in parts that, padded and without what is shared, have at most `tokens` tokens or one row."""
    order = sorted(numbers, key=lambda number: (-len(rows[number]), rows[number]))
    parts: list[Tokens] = []
    while order:
        longest = len(rows[order[0]])
        count = max(1, min(tokens // (longest - shared), REMEMBERED // longest if shared else len(order)))
        parts.append(tuple(order[:count]))
        order = order[count:]
    return parts


def _joined(rows: Sequence[Tokens], made: Sequence[Batch], tokens: int) -> list[Batch]:
    """Small batches of different families that share equally many tokens, made into one."""
    found: list[Batch] = [one for one in made if not one.is_shared]
    open_: Batch | None = None
    for one in sorted((one for one in made if one.is_shared), key=lambda one: (one.shared, _width(rows, one))):
        if open_ is not None and open_.shared == one.shared:
            both = Batch(
                one.shared,
                (*open_.prefixes, *one.prefixes),
                (*open_.owners, *(len(open_.prefixes) for _ in one.owners)),
                (*open_.rows, *one.rows),
            )
            longest = one.shared + _width(rows, both)
            if cost(rows, both) <= tokens and len(both.rows) * longest <= REMEMBERED:
                open_ = both
                continue
        if open_ is not None:
            found.append(open_)
        open_ = one
    return found if open_ is None else [*found, open_]


def _width(rows: Sequence[Tokens], batch: Batch) -> int:
    """Tokens of its longest row, without what is shared."""
    return max(len(rows[row]) for row in batch.rows) - batch.shared


def cost(rows: Sequence[Tokens], batch: Batch) -> int:
    """Tokens that it runs, padding included."""
    return len(batch.prefixes) * batch.shared + len(batch.rows) * _width(rows, batch)

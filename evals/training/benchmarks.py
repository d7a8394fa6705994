"""Write the documents of the benchmarks that are shipped for the small model.

    PYTHONPATH=evals python evals/training/benchmarks.py

makes evals/qconvert_evals/tasks/shipped/*.jsonl, one JSON object per line, a function of this file and of the held-out
texts alone:

    recall   a table, some of its rows looked up, and a row broken off before a colour that stands a few words back
    math     an addition written out up to the middle of a step; the answer is the rest of the step
    code     a held-out source file broken off at a line's end; the choices are the next line at four indentations, each
             of which is the right one equally often
    needle   a variable and its value, N tokens of other facts, and the variable once more; the choices are values that
             differ in the last digit
    context  the end of a held-out text behind N tokens of what stands before it

Generated documents have seeds of their own, which neither training nor the held-out texts used. Prose is measured on
the held-out texts themselves. A task at chance shows no damage, so none is kept that the small model does not do better
than that (tests/tasks/test_shipped.py): it cannot tell which of four passages follows, nor write a needle out.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import Tokenizer

from training import generated

PACKAGE = Path(__file__).resolve().parents[1] / "qconvert_evals"
SHIPPED = PACKAGE / "tasks" / "shipped"
SEEDS = 2_000_000
CHOICES = 4
COUNTS = {"recall": 64, "math": 96, "code": 96, "needle": 128}
CONTEXT_LINES, INDENTATIONS = 5, (0, 4, 8, 12)
HAYSTACKS = (16, 48, 128)  # tokens
LENGTHS, PASSAGE = (32, 128, 512), 64  # tokens


def recall(number: int) -> dict[str, Any]:
    """The colour once more."""
    random = Random(f"benchmark recall {SEEDS + number}")
    lines = generated._table(random).splitlines()
    rows = [place for place, line in enumerate(lines) if line.startswith("Look up")]
    place = rows[random.randrange(len(rows))]
    begin, mark, rest = lines[place].partition("the thing is a")
    question = "\n".join([f"[1] {lines[0]}", *lines[1:place], begin + mark])
    return {"question": question, "answer": rest.split()[0]}


def math(number: int) -> dict[str, Any]:
    """One step of an addition: the sum of two digits and a carry, what to write, what to carry."""
    random = Random(f"benchmark math {SEEDS + number}")
    lines = generated._addition(random).splitlines()
    place = random.randint(1, len(lines) - 3)
    begin, mark, rest = lines[place].partition(" =")
    return {"question": "\n".join([f"[1] {lines[0]}", *lines[1:place], begin + mark]), "answer": rest.strip()}


def code() -> list[dict[str, Any]]:
    """How far the next line is indented; as many lines of each indentation."""
    random = Random(f"benchmark code {SEEDS}")
    places: dict[int, list[tuple[str, list[str], int]]] = {width: [] for width in INDENTATIONS}
    for row in _held_out("code"):
        lines = row["text"].splitlines()
        for at in range(CONTEXT_LINES, len(lines)):
            width = len(lines[at]) - len(lines[at].lstrip())
            if width in places and lines[at].strip() and lines[at - 1].strip():
                places[width].append((row["id"], lines, at))
    each = COUNTS["code"] // len(INDENTATIONS)
    drawn = zip(*(random.sample(found, each) for found in places.values()), strict=True)
    chosen = [one for row in drawn for one in zip(row, places, strict=True)]  # in turn, for runs with a limit
    return [
        {
            "file": name,
            "question": "\n".join(lines[at - CONTEXT_LINES : at]) + "\n",
            "choices": [" " * one + lines[at].strip() for one in INDENTATIONS],
            "answer": INDENTATIONS.index(width),
        }
        for (name, lines, at), width in chosen
    ]


def needle(number: int, length: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """The value of a variable; the same ones at every length. Choices that share all but a token cost one row.

    Four documents have the same four digits to choose from, each right once: to like some digits gains nothing.
    """
    random = Random(f"benchmark needle {SEEDS + number}")
    digits = Random(f"benchmark digits {SEEDS + number // CHOICES}").sample(range(10), CHOICES)
    name, tens = generated._name(random), random.randint(100, 999)
    choices = [10 * tens + digit for digit in digits]
    value, hay = choices[number % CHOICES], ""
    while len(ids := tokenizer.encode(hay).ids) < length:
        hay += f"\n[{hay.count('[') + 2}] {generated._facts(random)}\n"
    stated = f"[1] let {name} = {value};\nprint({name}); // {value}\n"
    question = f"{stated}{tokenizer.decode(ids[:length])}\nprint({name}); //"
    return {"question": question, "choices": [f" {one}" for one in choices], "answer": number % CHOICES}


def context(length: int, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """The same ends of the same texts for every length."""
    found = []
    for row in _held_out("prose"):
        ids = tokenizer.encode(row["text"]).ids
        if len(ids) < max(LENGTHS) + PASSAGE:
            continue
        end = tokenizer.decode(ids[-PASSAGE:])
        found.append({"question": tokenizer.decode(ids[-PASSAGE - length : -PASSAGE]), "answer": end})
    return found


def _held_out(domain: str) -> list[dict[str, Any]]:
    lines = (PACKAGE / "texts" / f"{domain}.jsonl").read_text("utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def main() -> None:
    """Write all files."""
    tokenizer = Tokenizer.from_file(str(PACKAGE / "small_model" / "tokenizer.json"))
    _write("recall", map(recall, range(COUNTS["recall"])))
    _write("math", map(math, range(COUNTS["math"])))
    _write("code", code())
    for length in HAYSTACKS:
        _write(f"needle_{length}", (needle(number, length, tokenizer) for number in range(COUNTS["needle"])))
    for length in LENGTHS:
        _write(f"context_{length}", context(length, tokenizer))


def _write(name: str, rows: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps({"id": f"{name}/{number}", **row}) + "\n" for number, row in enumerate(rows))
    (SHIPPED / f"{name}.jsonl").write_text(text, "utf-8")


if __name__ == "__main__":
    main()

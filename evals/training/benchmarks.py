"""Write the documents of the benchmarks that are shipped for the small model.

    PYTHONPATH=evals python evals/training/benchmarks.py

makes evals/qconvert_evals/tasks/shipped/*.jsonl, one JSON object per line, a function of this file and of the held-out
texts alone:

    recall   a table, some of its rows looked up, and a row broken off before a colour that stands a few words back
    math     an addition written out up to the middle of a step; the answer is the rest of the step
    code     a held-out source file broken off at a line's end; the choices are its next lines and those of other files
    context  the end of a held-out text behind N tokens of what stands before it

Generated documents have seeds of their own, which neither training nor the held-out texts used. Prose is measured on
the held-out texts themselves. Left out: a needle in a long text. The small model cannot look up what stands more
than a few words back, and a task at chance shows no damage.
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
COUNTS = {"recall": 64, "math": 96, "code": 64}
CONTEXT_LINES, CONTINUATION_LINES = 6, 3
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
    """What comes next."""
    texts = {row["id"]: row["text"].splitlines(keepends=True) for row in _held_out("code")}
    random = Random(f"benchmark code {SEEDS}")
    span = CONTEXT_LINES + CONTINUATION_LINES
    places = [(name, at) for name, lines in texts.items() for at in range(0, len(lines) - span, span)]
    found = []
    for name, at in sorted(random.sample(places, COUNTS["code"])):
        others = random.sample([one for one in places if one[0] != name], CHOICES - 1)
        choices = ["".join(texts[of][k + CONTEXT_LINES : k + span]) for of, k in [(name, at), *others]]
        right = choices[0]
        random.shuffle(choices)
        question = "".join(texts[name][at : at + CONTEXT_LINES])
        found.append({"file": name, "question": question, "choices": choices, "answer": choices.index(right)})
    return found


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
    for length in LENGTHS:
        _write(f"context_{length}", context(length, tokenizer))


def _write(name: str, rows: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps({"id": f"{name}/{number}", **row}) + "\n" for number, row in enumerate(rows))
    (SHIPPED / f"{name}.jsonl").write_text(text, "utf-8")


if __name__ == "__main__":
    main()

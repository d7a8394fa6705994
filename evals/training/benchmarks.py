"""Write the documents of the benchmarks that are shipped for the small model.

    PYTHONPATH=evals python evals/training/benchmarks.py

makes evals/qconvert_evals/tasks/shipped/*.jsonl, one JSON object per line, a function of this file alone:

    recall   facts about people, then a question about one of them; the choices are what the people have
    math     an exercise of the training kind; the answer is its result, the steps are left to the model
    code     a held-out source file broken off at a line's end; the choices are the next lines of it and of three others
    needle   a fact, other text of the recall kind up to about N tokens, then the question about the fact

Generated documents have seeds of their own, which neither training nor the held-out texts used. The fourth domain,
prose, is measured on the held-out texts themselves.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import Tokenizer

from training import generated

PACKAGE = Path(__file__).resolve().parents[1] / "qconvert_evals"
SHIPPED = PACKAGE / "tasks" / "shipped"
SEEDS = 2_000_000
CHOICES = 4
COUNTS = {"recall": 120, "math": 100, "code": 120, "needle": 40}
LENGTHS = (128, 256, 512, 1024)
CONTEXT_LINES, CONTINUATION = 12, (30, 160)
RESULTS = {
    generated._addition: r"(?m)^\d+ \+ \d+ = (\d+)$",
    generated._subtraction: r"(?m)^\d+ - \d+ = (\d+)$",
    generated._division: r"(?m)^\d+ / \d+ = (\d+ remainder \d+)$",
    generated._sorting: r"(?m)^Result: (.+)$",
}


def recall(number: int) -> dict[str, Any]:
    """Who has what."""
    random = Random(f"benchmark recall {SEEDS + number}")
    people, things = _facts(random, CHOICES + random.randint(0, 2))
    asked = random.randrange(len(people))
    facts = " ".join(f"{who} has a {what}." for who, what in zip(people, things, strict=True))
    others = random.sample([what for place, what in enumerate(things) if place != asked], CHOICES - 1)
    question = f"[1] {facts}\nQuestion: what does {people[asked]} have? Answer: {people[asked]} has a"
    return _choice(random, question, things[asked], others)


def math(number: int) -> dict[str, Any]:
    """An exercise and its result."""
    random = Random(f"benchmark math {SEEDS + number}")
    kinds = list(RESULTS)
    kind: Callable[[Random], str] = kinds[number % len(kinds)]
    text = kind(random)
    found = re.search(RESULTS[kind], text)
    assert found is not None
    return {"kind": kind.__name__.strip("_"), "question": f"[1] {text.splitlines()[0]}\n", "answer": found[1]}


def code() -> list[dict[str, Any]]:
    """Where the next line comes from."""
    lines = (PACKAGE / "texts" / "code.jsonl").read_text("utf-8").splitlines()
    texts = [json.loads(line)["text"].splitlines(keepends=True) for line in lines]
    random, found = Random(f"benchmark code {SEEDS}"), []
    places = [(text, place) for text in range(len(texts)) for place in _places(texts[text])]
    for text, place in sorted(random.sample(places, COUNTS["code"])):
        others = random.sample([one for one in places if one[0] != text], CHOICES - 1)
        context = "".join(texts[text][max(0, place - CONTEXT_LINES) : place])
        found.append(_choice(random, context, texts[text][place], [texts[t][p] for t, p in others]))
    return found


def _places(lines: list[str]) -> list[int]:
    """Lines long enough to tell where they come from, with some text in front of them."""
    return [n for n in range(4, len(lines)) if CONTINUATION[0] <= len(lines[n].strip()) <= CONTINUATION[1]]


def needle(length: int, number: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """A fact at the beginning, the question about `length` tokens later."""
    random = Random(f"benchmark needle {length} {SEEDS + number}")
    people, things = _facts(random, CHOICES)
    parts = ["[1] " + " ".join(f"{who} has a {what}." for who, what in zip(people, things, strict=True))]
    asked = random.randrange(CHOICES)
    question = f"Question: what does {people[asked]} have? Answer: {people[asked]} has a"
    fillers = (generated._copy, generated._assignments, generated._swap)
    while len(tokenizer.encode("\n\n".join([*parts, question])).ids) < length:
        parts.append(f"[{len(parts) + 1}] {random.choice(fillers)(random)}")
    others = [what for place, what in enumerate(things) if place != asked]
    return _choice(random, "\n\n".join([*parts, f"[{len(parts) + 1}] {question}"]), things[asked], others)


def _facts(random: Random, count: int) -> tuple[list[str], list[str]]:
    """Names, and what each has: all different, so that one answer is right."""
    people = [name.capitalize() for name in generated._names(random, count)]
    pairs = [f"{colour} {thing}" for colour in generated.COLOURS for thing in generated.THINGS]
    return people, random.sample(pairs, count)


def _choice(random: Random, question: str, right: str, wrong: list[str]) -> dict[str, Any]:
    choices = [right, *wrong]
    random.shuffle(choices)
    return {"question": question, "choices": choices, "answer": choices.index(right)}


def main() -> None:
    """Write all files."""
    tokenizer = Tokenizer.from_file(str(PACKAGE / "small_model" / "tokenizer.json"))
    _write("recall", map(recall, range(COUNTS["recall"])))
    _write("math", map(math, range(COUNTS["math"])))
    _write("code", code())
    for length in LENGTHS:
        _write(f"needle_{length}", (needle(length, number, tokenizer) for number in range(COUNTS["needle"])))


def _write(name: str, rows: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps({"id": f"{name}/{number}", **row}) + "\n" for number, row in enumerate(rows))
    (SHIPPED / f"{name}.jsonl").write_text(text, "utf-8")


if __name__ == "__main__":
    main()

"""The texts: what the small model learns from, and what it is measured on.

    code     source files of the running interpreter's standard library, cut at top-level statements
    prose    the language reference behind `help()` (pydoc_data.topics) and the docstrings of those source files
    math     generated arithmetic with worked steps;   recall   generated tables, facts and copying (generated.py)

Held out are whole files, whole topics and seeds of their own. The docstrings of a held-out file are held out too. Texts
repeat themselves all the same (licences, topics quoting each other), so every line of the training text that shares a
run of 100 characters with a held-out document is dropped as well; white space does not count in that comparison.
Held-out documents are shipped, so those from files with a copyright notice of their own are left out in the end.

Left out: the library's tests, vendored tools and character tables, which are large and say little.
"""

from __future__ import annotations

import ast
import hashlib
import json
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from random import Random

import numpy as np
import numpy.typing as npt

from training.generated import math_document, recall_document

DOMAINS = ("code", "prose", "math", "recall")
WINDOW = 100
SKIPPED = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "lib2to3",
    "ensurepip",
    "turtledemo",
    "pydoc_data",
    "encodings",
    "__pycache__",
}
HELD_OUT_SHARE = 0.12
HELD_OUT_DOCUMENTS = 32
SHORTEST, LONGEST = 1200, 2500
GENERATED_DOCUMENTS = 3000
HELD_OUT_SEEDS = 1_000_000  # generated held-out documents count their seeds from here
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class HeldOut:
    """One evaluation document."""

    id: str
    domain: str
    text: str


@dataclass(frozen=True)
class Corpus:
    """Training documents by domain, held-out documents, and what was done to keep them apart."""

    train: dict[str, list[str]]
    held_out: list[HeldOut]
    facts: dict[str, int]


def build_corpus(seed: int) -> Corpus:
    """Everything, as a function of the seed and of the interpreter's own library."""
    code, prose = _library()
    noticed = {name for name, text in code.items() if _has_notice(text)}
    held_out_code, train_code = _split(code, seed)
    held_out_prose, train_prose = _split(prose, seed)
    held_out = _choose(held_out_code, "code", seed) + _choose(held_out_prose, "prose", seed)
    for domain, make in (("math", math_document), ("recall", recall_document)):
        seeds = range(HELD_OUT_SEEDS, HELD_OUT_SEEDS + HELD_OUT_DOCUMENTS)
        held_out += [HeldOut(f"{domain}/seed-{number}", domain, make(number)) for number in seeds]
    train = {
        "code": [part for text in train_code.values() for part in _pieces(text, 6000)],
        "prose": list(train_prose.values()),
        "math": [math_document(number) for number in range(GENERATED_DOCUMENTS)],
        "recall": [recall_document(number) for number in range(GENERATED_DOCUMENTS)],
    }
    corpus = separate(train, held_out)
    shipped = [d for d in corpus.held_out if d.id.partition("/")[2].partition("#")[0] not in noticed]
    return Corpus(corpus.train, shipped, corpus.facts)


def save_held_out(documents: list[HeldOut], folder: Path) -> None:
    """One JSON Lines file per domain."""
    folder.mkdir(parents=True, exist_ok=True)
    for domain in DOMAINS:
        rows = [{"id": d.id, "domain": d.domain, "text": d.text} for d in documents if d.domain == domain]
        (folder / f"{domain}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _library() -> tuple[dict[str, str], dict[str, str]]:
    """Code by file name; prose by topic, and by the name of the file whose docstrings it joins."""
    root = Path(sysconfig.get_path("stdlib"))
    code, prose = {}, {f"topic/{name}": text for name, text in topics.items()}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if SKIPPED & set(path.relative_to(root).parts) or name.startswith(("_sysconfigdata", "config-")):
            continue
        try:
            text = path.read_text("utf-8")
            code[name], prose[name] = text, _docstrings(text)
        except (UnicodeDecodeError, SyntaxError):
            continue
    return code, {name: text for name, text in prose.items() if len(text) >= 200}


def _docstrings(source: str) -> str:
    """The docstrings of two lines or more, dedented, under the names they belong to."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text and "\n" in text:
                found.append(f"{getattr(node, 'name', 'module')}: {text}\n")
    return "\n".join(found)


def is_held_out(name: str, seed: int) -> bool:
    """Decided by a hash of the file or topic alone, so the docstrings of a file go the way of its code."""
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    share = HELD_OUT_SHARE * (2 if name.startswith("topic/") else 1)
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _split(texts: dict[str, str], seed: int) -> tuple[dict[str, str], dict[str, str]]:
    """Held out, and for training."""
    held_out = {name: text for name, text in texts.items() if is_held_out(name, seed)}
    return held_out, {name: text for name, text in texts.items() if name not in held_out}


def _has_notice(text: str) -> bool:
    """A copyright or licence of its own: such text is learned from, but not shipped."""
    return "copyright" in text.lower() or "license" in text.lower()


def _pieces(text: str, longest: int) -> list[str]:
    """Cut before lines that begin a top-level statement or paragraph; pieces of about `longest` characters at most."""
    pieces, piece = [], ""
    for block in text.split("\n\n"):
        starts = bool(block.strip()) and not block[:1].isspace()
        if piece and starts and len(piece) + len(block) > longest:
            pieces.append(piece)
            piece = ""
        piece += block + "\n\n"
    return [*pieces, piece] if piece.strip() else pieces


def _choose(texts: dict[str, str], domain: str, seed: int) -> list[HeldOut]:
    """Documents of 1200 to 2500 characters, from as many different files and topics as possible."""
    random, rounds = Random(f"{seed} {domain}"), []
    for name, text in sorted(texts.items()):
        if _has_notice(text):
            continue
        pieces = [p.strip("\n") + "\n" for p in _pieces(text, LONGEST)]
        pieces = [p for p in pieces if SHORTEST <= len(p) <= LONGEST]
        random.shuffle(pieces)
        rounds += [(turn, random.random(), f"{domain}/{name}#{turn}", piece) for turn, piece in enumerate(pieces)]
    chosen = sorted(rounds)[:HELD_OUT_DOCUMENTS]
    return [HeldOut(name, domain, text) for _, _, name, text in chosen]


def separate(train: dict[str, list[str]], held_out: list[HeldOut]) -> Corpus:
    """Drop every training line that shares a window with a held-out document."""
    known = np.unique(np.concatenate([_windows(_collapse(d.text)) for d in held_out]))
    cleaned, dropped = {}, 0
    for domain, texts in train.items():
        results = [_without(text, known) for text in texts]
        cleaned[domain] = [text for text, _ in results if text.strip()]
        dropped += sum(count for _, count in results)
    left = sum(shared_windows(text, known) for texts in cleaned.values() for text in texts)
    facts = {"dropped_lines": dropped, "shared_windows_left": left, "held_out_windows": len(known)}
    return Corpus(cleaned, held_out, facts)


def _without(text: str, known: Hashes) -> tuple[str, int]:
    """The text without lines that touch a known window, seams included, and how many those were."""
    dropped = 0
    while True:
        lines = text.split("\n")
        starts = np.cumsum([0] + [len(" ".join(line.split())) + 1 if line.strip() else 0 for line in lines])
        hits = np.flatnonzero(_known(_windows(_collapse(text)), known))
        if not len(hits):
            return text, dropped
        touched = {i for i in range(len(lines)) if np.any((hits < starts[i + 1]) & (hits + WINDOW > starts[i]))}
        text = "\n".join(line for i, line in enumerate(lines) if i not in touched or starts[i] == starts[i + 1])
        dropped += len(touched)


def shared_windows(text: str, known: Hashes) -> int:
    """How many windows of a text are known."""
    return int(_known(_windows(_collapse(text)), known).sum())


def _known(hashes: Hashes, known: Hashes) -> npt.NDArray[np.bool_]:
    """Which of the hashes are among the sorted known ones (np.isin would sort those again for every text)."""
    places = np.searchsorted(known, hashes).clip(max=len(known) - 1)
    return np.asarray(known[places] == hashes)


def _collapse(text: str) -> bytes:
    """One space wherever there was white space."""
    return " ".join(text.split()).encode("ascii", "replace")


def _windows(text: bytes) -> Hashes:
    """A hash of every run of 100 characters, sum of c_i * 1_000_003^i modulo 2^64. A collision drops one line more."""
    characters = np.frombuffer(text, dtype=np.uint8).astype(np.uint64)
    count = max(len(characters) - WINDOW + 1, 0)
    hashes = np.zeros(count, dtype=np.uint64)
    factor = np.uint64(1)
    with np.errstate(over="ignore"):
        for i in range(WINDOW if count else 0):
            hashes += characters[i : i + count] * factor
            factor = factor * np.uint64(1_000_003)
    return hashes

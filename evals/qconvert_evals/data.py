"""Documents to measure on: the package's own texts, a file, or a data set of the hub.

    (nothing)         evaluation texts inside the package, several domains, held out from the small model's training
    FILE.jsonl        one JSON object per line: {"text": ..., "domain": optional, "id": optional}
    FILE.txt          plain text, cut at line ends to parts of about 4,000 characters
    NAME[:SPLIT], NAME:CONFIG:[SPLIT], FILE.parquet
                      a data set of the hub, a folder of one, or a file, read through `datasets`: its field "text",
                      "content" or else its first string; without SPLIT the first of SPLITS that it has

Intervals take documents as independent draws, and one document has none. That is why a text file is cut: neighbouring
parts still depend on each other a little, far parts do not. Left out: shuffling. The first documents are taken, so
two runs measure the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from qconvert.errors import UserError

PART_CHARACTERS = 4000
MAX_DATASET_DOCUMENTS = 512
TEXT_FIELDS = ("text", "content")
SHOWN = 300  # characters of an error of `datasets`, whose later lines name what there is
SPLITS = ("test", "validation", "train")


@dataclass(frozen=True)
class Document:
    """One text, an independent draw from its domain."""

    id: str
    domain: str
    text: str


def load_documents(spec: str | None = None) -> list[Document]:
    """Documents of a specification as above; UserError where it leads to none."""
    if spec is None:
        documents = _packaged()
    elif spec.endswith(".jsonl"):
        documents = _from_jsonl(_read(Path(spec)), spec, Path(spec).stem)
    elif spec.endswith(".txt") or (Path(spec).is_file() and not spec.endswith(".parquet")):
        documents = _from_text(_read(Path(spec)), Path(spec).stem)
    else:
        documents = _from_dataset(spec)
    kept = [one for one in documents if one.text.strip()]
    if not kept:
        raise UserError("there is no text to measure on", where=spec or "the texts of the package")
    return kept


def _packaged() -> list[Document]:
    """All texts/*.jsonl of the package; a file's name is the domain of its documents."""
    folder = files("qconvert_evals").joinpath("texts")
    entries = sorted((one for one in folder.iterdir() if one.name.endswith(".jsonl")), key=lambda one: one.name)
    return [
        document
        for entry in entries
        for document in _from_jsonl(entry.read_text("utf-8"), entry.name, entry.name.removesuffix(".jsonl"))
    ]


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        fix = "give --data a .txt or .jsonl file, or a data set"
        raise UserError("no such file", where=str(path), fix=fix) from error
    except (OSError, UnicodeDecodeError) as error:
        found = str(error)
        raise UserError("cannot read the documents", where=str(path), expected="UTF-8 text", found=found) from error


def _from_jsonl(text: str, where: str, stem: str) -> list[Document]:
    documents = []
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines() would also cut at U+2028 inside a text
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError("a line is not JSON", where=f"{where}:{number}", found=str(error)) from error
        if not isinstance(row, dict) or not isinstance(row.get("text"), str):
            expected = '{"text": "...", ...}'
            raise UserError("a line has no text", where=f"{where}:{number}", expected=expected, found=line[:60])
        domain, name = str(row.get("domain") or stem), str(row.get("id") or f"{stem}/{number}")
        documents.append(Document(name, domain.replace(",", "_").replace("=", "_"), row["text"]))
    return documents


def _from_text(text: str, stem: str) -> list[Document]:
    return [Document(f"{stem}/{number}", "text", part) for number, part in enumerate(_parts(text), start=1)]


def _parts(text: str) -> Iterator[str]:
    """Whole lines, about PART_CHARACTERS at a time; a longer line is a part of its own."""
    part: list[str] = []
    size = 0
    for line in text.splitlines(keepends=True):
        part.append(line)
        size += len(line)
        if size >= PART_CHARACTERS:
            yield "".join(part)
            part, size = [], 0
    yield "".join(part)


def _from_dataset(spec: str) -> list[Document]:
    """The first documents of one split; what goes wrong in there is the user's to see, without our traceback."""
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            "reading a data set needs the package `datasets`",
            where=spec,
            fix="pip install 'qconvert[data]', or give --data a .txt or .jsonl file",
        ) from error
    name, config, split = _parse(spec)
    source = ("parquet", None, None, {"train": name}) if name.endswith(".parquet") else (name, config)
    try:
        found = datasets.load_dataset(*source, split=split, streaming=True)
        rows = found[_split_of(list(found), spec)] if isinstance(found, Mapping) else found
        taken = list(rows.take(MAX_DATASET_DOCUMENTS))
    except UserError:
        raise
    except (
        Exception
    ) as error:  # offline, unknown name, no such config or split: `datasets` has no common class for them
        raise UserError(
            "cannot read the data set",
            where=spec,
            expected="NAME, NAME:SPLIT, NAME:CONFIG: or NAME:CONFIG:SPLIT",
            found=" ".join(f"{type(error).__name__}: {error}".split())[:SHOWN],
            fix="check the name and the network, or give --data a .txt or .jsonl file",
        ) from error
    domain = Path(name).name.removesuffix(".parquet")
    field = _text_field(taken, spec)
    texts = [row.get(field) for row in taken]
    return [Document(f"{name}/{n}", domain, text) for n, text in enumerate(texts) if isinstance(text, str)]


def _parse(spec: str) -> tuple[str, str | None, str | None]:
    """Name, configuration and split of a data set; one word behind the name is a split."""
    if Path(spec).exists():
        return spec, None, None
    name, *rest = spec.split(":")
    if len(rest) > 2:
        raise UserError("this names no data set", expected="NAME[:SPLIT] or NAME:CONFIG:[SPLIT]", found=spec)
    config, split = rest if len(rest) == 2 else ("", *rest) if rest else ("", "")
    return name, config or None, split or None


def _split_of(names: list[str], where: str) -> str:
    found = [one for one in SPLITS if one in names] or names
    if not found:
        raise UserError("the data set has no splits", where=where)
    return found[0]


def _text_field(rows: list[Mapping[str, Any]], where: str) -> str:
    """One field for all rows: a row in which it is empty must not lend its title or its label as a text."""
    strings = {key: None for row in rows for key, value in row.items() if isinstance(value, str)}
    for key in (*TEXT_FIELDS, *strings):
        if key in strings:
            return key
    found = ", ".join(dict.fromkeys(key for row in rows for key in row)) or "no rows"
    raise UserError("the data set has no text", where=where, expected="a field of strings", found=found)

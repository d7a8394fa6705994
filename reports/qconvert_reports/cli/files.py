"""Writing the files that a command was asked for: refused before any work, drawn before any is written."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qconvert.errors import UserError


def free_files(paths: Iterable[Path], overwrite: bool) -> None:
    """Refuse files that exist, unless they may be replaced."""
    for path in paths:
        if path.exists() and not overwrite:
            raise UserError("the file exists", where=str(path), fix="name another one, or give --overwrite")


def make_folder(folder: Path) -> None:
    """The folder for several files; it may exist."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError("cannot make the folder", where=str(folder), found=str(error)) from error


def write_files(texts: dict[Path, str]) -> None:
    """Every text is there before the first file is written."""
    for path, text in texts.items():
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError("cannot write the report", where=str(path), found=str(error)) from error

"""The report folder: results.json, report.html, report.md, summary.md, junit.xml, tables/*.csv and tables/*.parquet,
in one step.

Everything is drawn into a hidden sibling first and then renamed, so nobody ever sees half a report and a failure leaves
nothing behind. An existing folder is replaced only when it is a report of ours, that is, holds a results.json; anything
else is the user's. Where pyarrow is not installed there is no Parquet, and whoever writes the report is told.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from qconvert.errors import UserError
from qconvert_evals.results import Results
from qconvert_reports.baseline import Against
from qconvert_reports.html import render_html
from qconvert_reports.junit import render_junit
from qconvert_reports.markdown import render_markdown, render_summary
from qconvert_reports.tables import csv_tables, has_parquet, parquet_tables

NO_PARQUET = (
    "tables are written as CSV alone: Parquet needs the package `pyarrow`, which is not installed\n"
    "  way out: pip install 'qconvert[data]'"
)


def check_report_folder(folder: Path) -> None:
    """Refuse a place where no report can go; called before the long work, and again before the rename."""
    if folder.exists() and not (folder.is_dir() and (_is_report(folder) or not any(folder.iterdir()))):
        raise UserError(
            "the report folder exists and is not a report of qconvert",
            where=str(folder),
            expected="no such folder, an empty one, or one with a results.json",
            fix="name another folder with --report, or remove this one",
        )
    if folder.is_symlink():
        raise UserError(
            "the report folder is a symbolic link", where=str(folder), fix="name the folder that it points to"
        )
    if not folder.absolute().parent.is_dir():
        raise UserError("the folder to hold the report does not exist", where=str(folder.absolute().parent))


def _is_report(folder: Path) -> bool:
    """A results.json that loads; a stray file of that name must not cost somebody a folder."""
    try:
        Results.load(folder / "results.json")
    except UserError:
        return False
    return True


def write_report(results: Results, folder: Path, against: Against | None = None) -> list[str]:
    """Draw everything beside the folder, then put it in place; what had to be left out is returned, to be said."""
    check_report_folder(folder)
    target = folder.absolute()
    texts = {
        "report.html": render_html(results, against),
        "report.md": render_markdown(results, against),
        "summary.md": render_summary(results, against),
        "junit.xml": render_junit(results, against),
        **{f"tables/{name}": text for name, text in csv_tables(results).items()},
    }
    files = {name: text.encode("utf-8") for name, text in texts.items()}
    parquet = parquet_tables(results) if has_parquet() else {}
    files |= {f"tables/{name}": data for name, data in parquet.items()}
    try:
        fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            fresh.chmod(0o755)  # mkdtemp makes it private, a report is to be read
            _fill(fresh, results, files)
            _put_in_place(fresh, target)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    except OSError as error:
        raise UserError("cannot write the report", where=str(folder), found=str(error)) from error
    return [] if parquet else [NO_PARQUET]


def _fill(folder: Path, results: Results, files: dict[str, bytes]) -> None:
    (folder / "tables").mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    results.save(folder / "results.json")


def _put_in_place(fresh: Path, target: Path) -> None:
    """Two renames; between them the old report lives beside the new one and goes back if the second fails."""
    if not target.exists():
        fresh.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    target.rename(old)
    try:
        fresh.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)

"""`qconvert report`: judge and draw an existing results.json; needs no model and no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qconvert.errors import UserError
from qconvert_reports.cli.finish import FILE, Judging, baseline_option, budget_option, extra_for, finish, json_option

if TYPE_CHECKING:
    from qconvert_evals.results import Results
    from qconvert_reports.baseline import Change


@click.command()
@click.argument("results_path", metavar="RESULTS", type=click.Path(path_type=Path))
@baseline_option
@budget_option
@click.option("--html", "html_file", type=FILE, help="Write the report as one page.")
@click.option("--markdown", "markdown_file", type=FILE, help="Write it for a pull-request comment.")
@click.option("--junit", "junit_file", type=FILE, help="Write one test case a check.")
@click.option("--overwrite", is_flag=True, help="Replace these files where they exist.")
@json_option
@click.pass_context
def report(
    ctx: click.Context,
    results_path: Path,
    baseline: Path | None,
    budget_file: Path | None,
    html_file: Path | None,
    markdown_file: Path | None,
    junit_file: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Judge and draw an existing results.json again, without a model.

    RESULTS is the file, or a report folder that holds it. Without --budget the verdict in the file stands.
    """
    from qconvert_evals.results import Results

    results = Results.load(results_path / "results.json" if results_path.is_dir() else results_path)
    judging = Judging(budget_file, baseline, None)
    judging.judge(results, keep=budget_file is None)
    wanted = {"html": html_file, "markdown": markdown_file, "junit": junit_file}
    files = {kind: path for kind, path in wanted.items() if path is not None}
    _write_files(results, judging.changes(results), files, overwrite)
    finish(ctx, results, judging, as_json, judged=True)


def _write_files(results: Results, changes: list[Change] | None, files: dict[str, Path], overwrite: bool) -> None:
    """Draw all that is wanted, then write; an existing file is refused before anything is written."""
    for path in files.values():
        if path.exists() and not overwrite:
            raise UserError("the file exists", where=str(path), fix="name another one, or give --overwrite")
    texts = {path: _render(kind, results, changes) for kind, path in files.items()}
    for path, text in texts.items():
        try:
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError("cannot write the report", where=str(path), found=str(error)) from error


def _render(kind: str, results: Results, changes: list[Change] | None) -> str:
    if kind == "html":
        with extra_for("report --html"):
            from qconvert_reports.html import render_html
        return render_html(results, changes)
    if kind == "markdown":
        from qconvert_reports.markdown import render_markdown

        return render_markdown(results, changes)
    from qconvert_reports.junit import render_junit

    return render_junit(results)

"""`qconvert report`: judge and draw existing results; needs no model and no torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from qconvert.errors import UserError
from qconvert_reports.cli.files import free_files, write_files
from qconvert_reports.cli.finish import (
    FILE,
    FOLDER,
    Judging,
    baseline_options,
    budget_option,
    extra_for,
    finish,
    json_option,
    min_margin_option,
)

if TYPE_CHECKING:
    from qconvert_evals.results import Results
    from qconvert_reports.baseline import Against


@click.command()
@click.argument("results_path", metavar="RESULTS", type=click.Path(path_type=Path), required=False)
@baseline_options
@click.option("--history", type=FOLDER, help="Draw all results.json below this folder over time, instead of RESULTS.")
@budget_option
@click.option("--html", "html_file", type=FILE, help="Write the report as one page.")
@click.option("--markdown", "markdown_file", type=FILE, help="Write it for a pull-request comment.")
@click.option("--summary", "summary_file", type=FILE, help="Write it for a job's step summary: longer.")
@click.option("--junit", "junit_file", type=FILE, help="Write one test case a check.")
@click.option(
    "--record", "record_file", type=FILE, help="Write the few figures of a pair that budgets are held against."
)
@click.option("--overwrite", is_flag=True, help="Replace these files where they exist.")
@min_margin_option
@json_option
@click.pass_context
def report(
    ctx: click.Context,
    results_path: Path | None,
    baseline: Path | None,
    gate_baseline: bool,
    allowed: tuple[str, ...],
    history: Path | None,
    budget_file: Path | None,
    html_file: Path | None,
    markdown_file: Path | None,
    summary_file: Path | None,
    junit_file: Path | None,
    record_file: Path | None,
    overwrite: bool,
    min_margin: float | None,
    as_json: bool,
) -> None:
    """Judge and draw an existing results.json again, without a model.

    RESULTS is the file, or a report folder that holds it. Without --budget the verdict in the file stands.
    """
    from qconvert_evals.results import Results

    wanted = {"html": html_file, "markdown": markdown_file, "summary": summary_file, "junit": junit_file}
    wanted["record"] = record_file
    files = {kind: path for kind, path in wanted.items() if path is not None}
    free_files(files.values(), overwrite)
    if history is not None:
        judged = (results_path, baseline, budget_file, junit_file, summary_file, record_file, min_margin)
        if any(judged) or as_json:
            raise UserError("--history judges nothing", fix="give it with --html and --markdown alone")
        _history(history, files)
        return
    if results_path is None:
        raise UserError("there are no results to report on", fix="give RESULTS, or --history FOLDER")
    saved = results_path / "results.json" if results_path.is_dir() else results_path
    results = Results.load(saved)
    judging = Judging(
        budget_file, baseline, None, gate_baseline=gate_baseline, allowed=allowed, saved=saved, min_margin=min_margin
    )
    judging.judge(results, keep=budget_file is None)
    against = judging.against(results)
    write_files({path: _render(kind, results, against) for kind, path in files.items()})
    finish(ctx, results, judging, as_json, judged=True)


def _history(folder: Path, files: dict[str, Path]) -> None:
    """All runs below a folder."""
    with extra_for("report --history"):
        from qconvert_reports.history import read_history, text_lines

    found = read_history(folder)
    texts = {}
    for kind, path in files.items():
        if kind == "html":
            with extra_for("report --history --html"):
                from qconvert_reports.history_page import render_page
            texts[path] = render_page(found)
        else:
            from qconvert_reports.history_markdown import render_history

            texts[path] = render_history(found)
    write_files(texts)
    click.echo("\n".join(text_lines(found)))


def _render(kind: str, results: Results, against: Against | None) -> str:
    if kind == "html":
        with extra_for("report --html"):
            from qconvert_reports.html import render_html
        return render_html(results, against)
    if kind == "markdown":
        from qconvert_reports.markdown import render_markdown

        return render_markdown(results, against)
    if kind == "summary":
        from qconvert_reports.markdown import render_summary

        return render_summary(results, against)
    if kind == "record":
        from qconvert_reports.recorded import record_text

        return record_text(results)
    from qconvert_reports.junit import render_junit

    return render_junit(results, against)

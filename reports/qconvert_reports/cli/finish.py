"""What the commands share: judge, write the report folder, print table and verdict, leave with its exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from qconvert.errors import UserError

if TYPE_CHECKING:
    from qconvert_evals.results import Results
    from qconvert_reports.baseline import Against
    from qconvert_reports.budget import Budget

LOG_WIDTH = 140  # columns when the output is no terminal: a table that wraps cannot be read in a log
FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
budget_option = click.option(
    "--budget", "budget_file", type=FILE, help="Bounds to judge by (TOML); default: the packaged ones."
)
device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda[:N]",
    help="Where the lanes compute; auto: on a GPU if there is one.",
)
BASELINE_OPTIONS = (
    click.option("--baseline", type=FILE, help="An earlier results.json: shows what changed since."),
    click.option(
        "--gate-baseline", is_flag=True, help="Fail where something changed for the worse since the baseline."
    ),
    click.option(
        "--allow-other",
        "allowed",
        multiple=True,
        type=click.Choice(["base", "tokens", "settings"]),
        help="Compare with a baseline of another BF16 model, other tokens or settings all the same; repeatable.",
    ),
)
yarn_option = click.option(
    "--yarn",
    type=click.FloatRange(min=1, min_open=True),
    metavar="FACTOR",
    help="Stretch the context of every lane by YaRN, for sequences beyond the trained length.",
)
min_margin_option = click.option(
    "--min-margin",
    type=click.FloatRange(min=0),
    metavar="X",
    help="Exit with 3 where a check passes with less than X half-widths of its interval to spare.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print results.json instead of the table.")


Command = TypeVar("Command", bound=Callable[..., object])


def baseline_options(command: Command) -> Command:
    """--baseline, --gate-baseline and --allow-other: arguments `baseline`, `gate_baseline` and `allowed`."""
    for option in reversed(BASELINE_OPTIONS):
        command = option(command)
    return command


class Judging:
    """Budget, baseline and report folder, all read and checked before anything is measured."""

    def __init__(
        self,
        budget_file: Path | None,
        baseline: Path | None,
        folder: Path | None,
        *,
        gate_baseline: bool = False,
        allowed: tuple[str, ...] = (),
        saved: Path | None = None,
        min_margin: float | None = None,
    ) -> None:
        from qconvert_evals.results import Results
        from qconvert_reports.budget import load_budget

        self.budget: Budget = load_budget(budget_file)
        self.baseline_path = baseline
        self.baseline = None if baseline is None else Results.load(baseline)
        self.folder, self.gate_baseline, self.allowed = folder, gate_baseline, allowed
        self.min_margin = min_margin
        self.saved = folder / "results.json" if saved is None and folder is not None else saved
        if self.baseline is None and (gate_baseline or allowed):
            raise UserError(
                "--gate-baseline and --allow-other speak of a baseline", fix="give --baseline RESULTS as well"
            )
        if folder is not None:
            with extra_for("report"):
                from qconvert_reports.folder import check_report_folder
            check_report_folder(folder)

    def judge(self, results: Results, keep: bool = False) -> None:
        """Put the verdict into the record; `keep` leaves one that is there."""
        from qconvert_reports.drift import settle

        if results.verdict is None or not keep:
            settle(results, self.budget)

    def against(self, results: Results) -> Against | None:
        """What changed since the baseline, None without one; where the baseline gates, the verdict is changed too."""
        from qconvert_reports.baseline import against, gated

        if self.baseline is None:
            return None
        found = against(results, self.baseline, str(self.baseline_path), self.saved, self.allowed)
        if self.gate_baseline and results.verdict is not None:
            results.verdict = gated(results.verdict, found)
        return found


def finish(ctx: click.Context, results: Results, judging: Judging, as_json: bool, judged: bool = False) -> None:
    """Judge, write the folder, print, and leave with its exit code."""
    from qconvert_reports.drift import EXIT_CODES

    if not judged:
        judging.judge(results)
    against = _against(results, judging)
    if judging.folder is not None:
        with _numbers_kept(results, judging.folder):
            _write(results, judging.folder, against)
    if as_json:
        click.echo(results.to_json(), nl=False)
    else:
        _print(results, judging, against)
    assert results.verdict is not None
    code = EXIT_CODES[results.verdict.status]
    ctx.exit(code or (EXIT_CODES["inconclusive"] if _too_thin(results, judging.min_margin) else 0))


def _too_thin(results: Results, wanted: float | None) -> bool:
    """Whether a check passes by less than was asked for; said on stderr."""
    from qconvert_reports.verdict_view import gate_line, show_margin, thinnest

    assert results.verdict is not None
    worst = thinnest(results.verdict.rows)
    if wanted is None or worst is None or worst.margin is None or worst.margin >= wanted:
        return False
    margin = f"margin {show_margin(worst.margin)} where {wanted:g} half-widths are asked for"
    click.echo(f"too near the bound to count on: {margin}: {gate_line(worst)}", err=True)
    return True


def _against(results: Results, judging: Judging) -> Against | None:
    """What changed; a baseline of something else must not cost the measured numbers."""
    try:
        return judging.against(results)
    except UserError:
        if judging.folder is not None:
            _write(results, judging.folder, None)
        raise


def _write(results: Results, folder: Path, against: Against | None) -> None:
    """The report folder; what it cannot hold is said on stderr."""
    from qconvert_reports.folder import write_report

    for remark in write_report(results, folder, against):
        click.echo(remark, err=True)


def _print(results: Results, judging: Judging, against: Against | None) -> None:
    from rich.console import Console

    from qconvert_reports.terminal import baseline_lines, summary_table, task_lines, verdict_lines

    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    console.print(summary_table(results))
    console.print()
    for line in baseline_lines(against) if against is not None else ():
        console.print(line, soft_wrap=True)
    for line in (*task_lines(results), *verdict_lines(results)):
        console.print(line, soft_wrap=True)
    if judging.folder is not None:
        click.echo(str(judging.folder / "report.html"))


@contextmanager
def _numbers_kept(results: Results, folder: Path) -> Iterator[None]:
    """A bug in drawing must not cost hours of measuring: the numbers go beside the folder and the traceback follows."""
    try:
        yield
    except UserError:
        raise
    except Exception:
        rescued = folder.with_name(f"{folder.name}.results.json")
        results.save(rescued)
        click.echo(f"the report could not be drawn; its numbers are in {rescued}", err=True)
        raise


@contextmanager
def extra_for(command: str) -> Iterator[None]:
    """Around imports: a package that is not installed becomes one message that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing.startswith("qconvert"):  # a broken installation or a bug, not something to install
            raise
        raise UserError(
            f"`qconvert {command}` needs the package `{missing}`, which is not installed",
            fix="pip install 'qconvert[evals]'",
        ) from error

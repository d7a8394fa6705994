"""Values that click does not know: the right ones are taken apart, the wrong ones refused as click refuses its own."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from qconvert_reports.cli.parameters import named, numbers


@click.command()
@click.option("--tokens", callback=numbers, default="8,2")
@click.option("--candidate", "candidates", callback=named, multiple=True)
def show(tokens: tuple[int, ...], candidates: tuple[tuple[str, str], ...]) -> None:
    click.echo(repr((tokens, candidates)))


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ([], ((2, 8), ())),
        (["--tokens", "512, 128,512"], ((128, 512), ())),
        (["--candidate", "a=b=c", "--candidate", "x=y"], ((2, 8), (("a", "b=c"), ("x", "y")))),
    ],
)
def test_right_values(words: list[str], found: object) -> None:
    assert CliRunner().invoke(show, words).output == f"{found!r}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--tokens", "1,two"], "'--tokens': expected numbers of tokens such as 128,512,2048, found '1,two'"),
        (["--tokens", "0"], "found '0'"),
        (["--tokens", "-3"], "found '-3'"),
        (["--tokens", ""], "found ''"),
        (["--tokens", "1,,2"], "found '1,,2'"),
        (["--candidate", "fp8"], "'--candidate': it needs a name and a path: expected NAME=PATH, found 'fp8'"),
        (["--candidate", "=b"], "found '=b'"),
        (["--candidate", "a="], "found 'a='"),
    ],
)
def test_wrong_values(words: list[str], message: str) -> None:
    result = CliRunner().invoke(show, words)
    assert result.exit_code == 2 and message in result.output

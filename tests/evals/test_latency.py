"""Latency: the counts and the formula with a clock that ticks as the test says; the command on the shipped model."""

import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
from click.testing import CliRunner

from qconvert.cli import main
from qconvert.errors import UserError
from qconvert.quantization import quantize
from qconvert_evals.latency import LatencySettings, Timings, cached_tensors, measure, open_latency_lanes, speed_up
from qconvert_evals.small_model_files import small_model_path
from qconvert_reference.cache import Cache
from tests.tiny import write_tiny_checkpoint

SETTINGS = LatencySettings(contexts=(8, 24), draft_tokens=2, new_tokens=6, rounds=2)


def steady() -> Callable[[], float]:
    """Every call takes a second."""
    ticks: Iterator[int] = count()
    return lambda: float(next(ticks))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    base = write_tiny_checkpoint(tmp_path_factory.mktemp("latency") / "bf16")
    quantize(base, base.parent / "fp8")
    return base, base.parent / "fp8"


def test_every_measurement_of_every_lane_and_length(folders: tuple[Path, Path]) -> None:
    base, fp8 = folders
    found = measure(open_latency_lanes(base, {"fp8": fp8}), list(range(24)), SETTINGS, clock=steady())
    assert [one.lane for one in found] == ["bf16", "fp8"]
    for one in found:
        rows = {(row.name, row.slice): row for row in one.measurements}
        assert not one.missing
        for length in SETTINGS.contexts:
            at = f"context={length}"
            for name in ("prefill", "decode", "verify", "draft"):
                row = rows[f"latency.{name}", at]
                assert (row.value, row.n, row.ci_low, row.ci_high) == (1.0, 2, 1.0, 1.0)
            assert rows["latency.prefill_speed", at].value == length
            steps = rows["latency.tokens_per_step", at].value
            assert steps is not None and 1 <= steps <= 3
            assert rows["latency.mtp_speed_up", at].value == pytest.approx(steps / 3)  # 1 / (1 + 2 * 1)
    longer, shorter = (
        next(r.value for r in found[0].measurements if r.name == "latency.cache_bytes" and r.slice == f"context={n}")
        for n in (24, 8)
    )
    assert longer is not None and shorter is not None and longer > shorter  # keys and values grow


def test_speed_up_is_tokens_per_step_over_the_price_of_a_step() -> None:
    times = Timings(decode=[2.0, 4.0, 3.0], verify=[5.0], draft=[0.5], tokens_per_step=2.8)
    assert speed_up(times, 2) == pytest.approx(2.8 * 3.0 / (5.0 + 2 * 0.5))
    assert speed_up(Timings(decode=[1.0], verify=[1.0]), 2) is None


def test_without_a_head_what_needs_one_is_missing_and_says_why(tmp_path: Path) -> None:
    base = write_tiny_checkpoint(tmp_path / "bf16", mtp=False)
    (found,) = measure(open_latency_lanes(base, {}), list(range(24)), SETTINGS, clock=steady())
    assert {row.name for row in found.missing} == {
        "latency.draft", "latency.tokens_per_step", "latency.mtp_speed_up"
    }  # fmt: skip
    assert all("no MTP head" in row.why for row in found.missing)


def test_an_empty_cache_holds_nothing(folders: tuple[Path, Path]) -> None:
    (lane,) = open_latency_lanes(folders[0], {})
    assert list(cached_tensors(Cache.empty(lane.config))) == []


def test_text_that_is_too_short_is_refused(folders: tuple[Path, Path]) -> None:
    with pytest.raises(UserError, match="shorter than the longest context"):
        measure(open_latency_lanes(folders[0], {}), list(range(23)), SETTINGS)


def test_the_command(tmp_path: Path) -> None:
    common = ["bench", "latency", "--bf16", str(small_model_path()), "--rounds", "1", "--new-tokens", "4"]
    result = CliRunner().invoke(main, [*common, "--contexts", "16"])
    assert result.exit_code == 0, result.output
    head, line = result.stdout.splitlines()
    assert head.split()[:2] == ["lane", "context"] and line.split()[:2] == ["bf16", "16"]
    result = CliRunner().invoke(main, [*common, "--contexts", "16", "--json"])
    names = {row["name"] for row in json.loads(result.stdout)}
    assert {"latency.prefill", "latency.decode", "latency.mtp_speed_up", "latency.weight_bytes"} <= names
    folder = tmp_path / "latency"
    words = [*common, "--contexts", "16,32", "--report", str(folder)]
    assert CliRunner().invoke(main, words).exit_code == 0
    page = (folder / "latency.html").read_text(encoding="utf-8")
    assert page.count("<img") == 5
    written = json.loads((folder / "latency.json").read_text(encoding="utf-8"))
    assert {row["slice"] for row in written} == {"context=16", "context=32", "all"}
    before = page
    refused = CliRunner().invoke(main, words)
    assert refused.exit_code == 2 and "the file exists" in refused.stderr
    assert (folder / "latency.html").read_text(encoding="utf-8") == before
    result = CliRunner().invoke(main, [*common, "--contexts", "16,x"])
    assert result.exit_code == 2 and "--contexts" in result.stderr

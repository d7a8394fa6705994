"""The command `bench kernels` without a GPU: its messages, and a record drawn again."""

import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

from qconvert.cli import main
from qconvert_kernels.bench.ceilings import Ceilings
from qconvert_kernels.bench.measure import Peer, Row
from qconvert_kernels.bench.record import Run, to_json
from qconvert_kernels.bench.timing import Times


def row(kernel: str, tokens: int, microseconds: float | None = 10.0, **more: object) -> Row:
    times = None if microseconds is None else Times(*(microseconds * 1e-6 * part for part in (1, 0.9, 1.2)))
    fields = {"shape": "w 2048x2048", "bytes": 32 << 20, "flops": 10**9, "distinct": None} | more
    return Row(kernel=kernel, tokens=tokens, error=0, tolerance=0, times=times, **fields)  # type: ignore[arg-type]


@pytest.fixture
def record(tmp_path: Path) -> Path:
    peers = {"torch bf16": Peer(Times(3e-5, 3e-5, 3e-5)), "vllm": Peer(None, "not installed: vllm | here")}
    rows = [row("fp8_w8a8", 1, peers=peers), row("grouped_fp8_w8a8", 64, distinct=367)]
    run = Run("2026-11-21T00:00:00+00:00", {"name": "A GPU"}, {"torch": "2"}, Ceilings(4e12, 8e14, 1.5e15), rows)
    (tmp_path / "record.json").write_text(to_json(run))
    return tmp_path / "record.json"


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["bench", "kernels", *map(str, arguments)])


def test_without_a_gpu_there_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = bench()
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert "the kernels cannot be timed here" in done.output and "--from FILE" in done.output


def test_a_record_is_drawn_without_a_gpu(record: Path, tmp_path: Path) -> None:
    done = bench("--from", record, "--report", tmp_path / "report")
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if line.startswith("| fp8_w8a8")]
    assert "10.0 us" in lines[0] and "84%" in lines[0] and "100.0" in lines[0]  # 10 us, 4 TB/s
    assert "torch bf16 3.00x" in lines[0] and "vllm (not installed: vllm / here)" in lines[0]
    assert "367" in done.output and "aim reached" in done.output and "not measured" in done.output
    assert (tmp_path / "report" / "bench.md").read_text() == done.output
    assert json.loads((tmp_path / "report" / "bench.json").read_text()) == json.loads(record.read_text())
    ET.fromstring((tmp_path / "report" / "roofline.svg").read_text())
    again = bench("--from", record, "--report", tmp_path / "report", "--json")  # replaces its own
    assert again.exit_code == 0 and json.loads(again.output) == json.loads(record.read_text())


def test_a_wrong_result_is_exit_code_1(record: Path) -> None:
    raw = json.loads(record.read_text())
    raw["rows"][0] |= {"times": None, "wrong": "off by 0.5 of its size", "peers": {}}
    record.write_text(json.dumps(raw))
    done = bench("--from", record)
    assert done.exit_code == 1 and "WRONG" in done.output and "off by 0.5" in done.output


@pytest.mark.parametrize("content", ["", "[]", '{"schema_version": 7}', '{"schema_version": 1}'])
def test_what_is_no_record(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    done = bench("--from", tmp_path / "x.json")
    assert done.exit_code == 2 and "this is no record of kernel timings" in done.output


def test_other_peoples_folders_stay(record: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.md").write_text("")
    done = bench("--from", record, "--report", tmp_path / "mine")
    assert done.exit_code == 2 and "holds other files" in done.output
    assert [one.name for one in (tmp_path / "mine").iterdir()] == ["thesis.md"]


def test_tuning_needs_a_place_to_write() -> None:
    done = bench("--tune")
    assert done.exit_code == 2 and "--configurations DIR" in done.output


def test_names_and_numbers_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    from qconvert_reports.cli import bench_kernels

    monkeypatch.setattr(bench_kernels, "_gpu", lambda: torch.device("cuda"))
    done = bench("--only", "fp9")
    assert done.exit_code == 2 and "no kernel has such a name" in done.output and "fp8_w8a16" in done.output
    done = bench("--tokens", "1,two")
    assert done.exit_code == 2 and "'--tokens': expected numbers of tokens" in done.output

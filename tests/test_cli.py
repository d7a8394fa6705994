"""The command line's surface: frozen flags, help everywhere, lazy imports, JSON, dry run, sizes and progress.

Exit codes of bad input stand in test_bad_input.py, those of damaged folders in test_faults.py.
"""

import io
import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from qconvert.cli import commands, main, progress
from qconvert.errors import UserError
from qconvert.sizes import format_bytes, parse_bytes
from tests.tiny import write_tiny_checkpoint

ROOT = Path(__file__).parents[1]
# A flag is a promise: removing or renaming one breaks somebody's script. Add here what is added there.
FLAGS = {
    "quantize": {
        "--scheme", "--format", "--scales", "--recipe", "--method", "--asymmetric", "--workers", "--dry-run",
        "--resume", "--no-resume", "--overwrite", "--device", "--json",
        "--calibration", "--calibration-tokens", "--min-tokens", "--max-shard-size",
    },
    "convert": {
        "--format", "--workers", "--max-shard-size", "--dry-run", "--resume", "--no-resume", "--overwrite", "--json",
    },
    "dequantize": {"--workers", "--max-shard-size", "--dry-run", "--resume", "--no-resume", "--overwrite", "--json"},
    "inspect": {"--json"},
    "verify": {"--against", "--workers", "--json"},
}  # fmt: skip


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


@pytest.mark.parametrize("name", FLAGS)
def test_flags_are_frozen_and_each_has_help(name: str) -> None:
    command = commands.load(name, commands.CORE[name])
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert {flag for option in options for flag in (*option.opts, *option.secondary_opts)} == FLAGS[name]
    assert all(option.help for option in options)
    assert run(name, "--help").exit_code == 0


def test_help_lists_every_command_with_its_summary() -> None:
    output = run("--help").output
    for name, reference in commands.references().items():
        assert name in output
        assert commands.summary(reference), f"{name} has no docstring"


def test_every_command_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [name for name in commands.references() if f"qconvert {name}" not in text]
    assert not missing


def test_help_imports_neither_torch_nor_other_rooms() -> None:
    script = (
        "import sys\n"
        "from qconvert.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "heavy = {'torch', 'numpy', 'safetensors', 'huggingface_hub', 'rich', 'jinja2', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)\n"
    )
    paths = [str(ROOT / folder) for folder in ("", "kernels", "reference", "evals", "reports")]
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        check=True,
        cwd=ROOT,
    )
    assert done.stderr.strip() == "[]"
    assert "quantize" in done.stdout


def test_commands_of_other_rooms_come_from_entry_points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "other_room.py").write_text(
        "import click\nimport_marker = click\n\n@click.command()\ndef greet() -> None:\n"
        '    """Say hello.\n\n    More."""\n    click.echo("hello")\n'
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    point = EntryPoint("greet", "other_room:greet", commands.GROUP)
    monkeypatch.setattr(commands.metadata, "entry_points", lambda group: [point] if group == commands.GROUP else [])
    assert "greet" in run("--help").output and "Say hello." in run("--help").output
    assert "other_room" not in sys.modules
    assert run("greet").output == "hello\n"


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "needs_more.py").write_text("import click\nimport package_nobody_has\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    point = EntryPoint("plot", "needs_more:plot", commands.GROUP)
    monkeypatch.setattr(commands.metadata, "entry_points", lambda group: [point])
    monkeypatch.setattr(commands.metadata, "requires", lambda name: ['package-nobody-has>=1; extra == "drawing"'])
    done = run("plot")
    assert done.exit_code == 2
    assert "package_nobody_has" in done.stderr and "qconvert[drawing]" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_command_is_a_usage_error() -> None:
    done = run("quantise")
    assert done.exit_code == 2
    assert "quantise" in done.stderr


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tiny_checkpoint(tmp_path / "source")


def test_json_of_every_command_parses(source: Path, tmp_path: Path) -> None:
    target = str(tmp_path / "fp8")
    assert json.loads(run("quantize", str(source), target, "--json").stdout)["counts"]["tensors_in"] == 135
    assert json.loads(run("verify", target, "--against", str(source), "--json").stdout)["ok"] is True
    assert json.loads(run("inspect", target, "--json").stdout)["model_type"] == "qwen3_next"
    assert json.loads(run("dequantize", target, str(tmp_path / "bf16"), "--json").stdout)["operation"] == "dequantize"


def test_json_of_a_failed_verification_parses_too(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "fp8"
    run("quantize", str(source), str(target))
    (target / "LICENSE").unlink()
    done = run("verify", str(target), "--json")
    report = json.loads(done.stdout)
    assert done.exit_code == 1
    assert [check["tensors"] for check in report["checks"] if not check["ok"]] == [["LICENSE"]]


@pytest.mark.parametrize("as_json", [True, False])
def test_dry_run_prints_the_plan_and_writes_nothing(source: Path, tmp_path: Path, as_json: bool) -> None:
    target = str(tmp_path / "fp8")
    done = run("quantize", str(source), target, "--dry-run", *(["--json"] if as_json else []))
    assert done.exit_code == 0, done.output
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["source"]
    if as_json:
        assert json.loads(done.stdout)["counts"]["quantized"] == 89
    else:
        assert "model.safetensors: 224 tensors" in done.stdout and "89 quantized, 46 kept" in done.stdout


def test_scales_and_overwrite_reach_the_conversion(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "fp8"
    assert run("quantize", str(source), str(target)).exit_code == 0
    assert run("quantize", str(source), str(target), "--scales", "pow2", "--overwrite").exit_code == 0
    assert json.loads((target / "qconvert.json").read_text())["recipe"]["scales"] == "pow2"


def test_sizes_are_written_and_read() -> None:
    assert [format_bytes(n) for n in (0, 999, 1000, 24_576, 162_649_725_440)] == [
        "0 B",
        "999 B",
        "1.00 kB",
        "24.58 kB",
        "162.6 GB",
    ]
    assert [parse_bytes(text) for text in ("1000", "8GB", "1.5 GiB", "500m")] == [1000, 8 * 10**9, 3 * 2**29, 5 * 10**8]
    for text in ("", "lots", "8 bananas", "-1GB", "0GB"):
        with pytest.raises(UserError):
            parse_bytes(text)


def test_a_log_gets_a_line_with_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 10.0])
    stream = io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.ProgressBar("quantize", stream) as bar:
        bar(1 * 10**9, 40 * 10**9, "first")  # five seconds in: too early for a line
        bar(20 * 10**9, 40 * 10**9, "second")
    assert stream.getvalue() == "quantize: 20.00 GB of 40.00 GB, 2.00 GB/s, 10 s left second\n"

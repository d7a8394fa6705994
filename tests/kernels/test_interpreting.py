"""The child pytest of `interpreted/`: each case reports for itself; a child that dies fails what it left undone."""

import os
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).parent / "interpreted/conftest.py"
TESTS = """
import os
import pytest

def test_passes():
    assert os.environ["TRITON_INTERPRET"] == "1"

def test_fails():
    assert 1 + 1 == 3, "a sum"

@pytest.mark.parametrize("n", [1, 2])
def test_numbers(n):
    if n == 2:
        pytest.skip("a reason")

@pytest.fixture
def broken():
    raise RuntimeError("no fixture")

def test_set_up(broken):
    pass

def test_dies():
    os._exit(7)

def test_never_comes():
    pass
"""


def run(folder: Path, *arguments: str) -> str:
    (folder / "interpreted").mkdir(exist_ok=True)
    (folder / "pytest.ini").touch()
    (folder / "interpreted/conftest.py").write_text(CONFTEST.read_text())
    (folder / "interpreted/test_it.py").write_text(TESTS)
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True).stdout


def test_every_case_reports_for_itself(tmp_path: Path) -> None:
    found = run(tmp_path)
    assert "3 failed, 2 passed, 1 skipped, 1 error" in found
    for line in (
        "PASSED interpreted/test_it.py::test_passes",
        "FAILED interpreted/test_it.py::test_fails - AssertionError: a sum",
        "PASSED interpreted/test_it.py::test_numbers[1]",
        "a reason",
        "ERROR interpreted/test_it.py::test_set_up - RuntimeError: no fixture",
        "FAILED interpreted/test_it.py::test_dies",
        "FAILED interpreted/test_it.py::test_never_comes",
        "the interpreting pytest ended with 7 before this test did",
    ):
        assert line in found, line


def test_selecting_one_case_runs_that_one(tmp_path: Path) -> None:
    assert "1 passed" in run(tmp_path, "interpreted/test_it.py::test_numbers[1]")

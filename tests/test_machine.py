"""Granted cores from the files of control groups, and what OpenMP is told before it is loaded."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qconvert import machine
from qconvert.machine import SPINS, WAITING, granted_cores, processor, settle

ROOT = Path(__file__).parents[1]
SMALL_MODEL = ROOT / "evals" / "qconvert_evals" / "small_model"
V2, V1 = "0::/job/step\n", "4:memory:/else\n3:cpu,cpuacct:/job/step\n"


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(machine, "affinity", lambda: 64)
    return tmp_path / "cgroup"


def test_the_smallest_quota_on_the_way_to_the_root_counts(groups: Path, tmp_path: Path) -> None:
    groups.write_text(V2)
    write(tmp_path / "fs" / "job" / "step", cpu__max="max 100000\n")
    assert granted_cores(groups, tmp_path / "fs") == 64
    write(tmp_path / "fs" / "job", cpu__max="250000 100000\n")
    assert granted_cores(groups, tmp_path / "fs") == 3  # two and a half cores
    write(tmp_path / "fs" / "job" / "step", cpu__max="50000 100000\n")
    assert granted_cores(groups, tmp_path / "fs") == 1


def test_a_container_sees_its_own_group_as_the_root(groups: Path, tmp_path: Path) -> None:
    groups.write_text("0::/../../docker/0123\n")
    write(tmp_path / "fs", cpu__max="400000 100000\n")
    assert granted_cores(groups, tmp_path / "fs") == 4


@pytest.mark.parametrize("mounted_as", ["cpu,cpuacct", "cpu"])
def test_version_1(groups: Path, tmp_path: Path, mounted_as: str) -> None:
    groups.write_text(V1)
    write(tmp_path / "fs" / mounted_as, cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert granted_cores(groups, tmp_path / "fs") == 64
    write(tmp_path / "fs" / mounted_as / "job" / "step", cpu__cfs_quota_us="600000\n", cpu__cfs_period_us="100000\n")
    assert granted_cores(groups, tmp_path / "fs") == 6


@pytest.mark.parametrize("text", [None, "", "garbage", "0::/job/step\n\n::::"])
def test_files_that_say_nothing_limit_nothing(groups: Path, tmp_path: Path, text: str | None) -> None:
    if text is not None:
        groups.write_text(text)
    write(tmp_path / "fs" / "job", cpu__max="half 100000\n")
    assert granted_cores(groups, tmp_path / "fs") == 64


def test_affinity_counts_beside_quotas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "affinity", lambda: 2)
    (tmp_path / "cgroup").write_text("0::/\n")
    write(tmp_path / "fs", cpu__max="800000 100000\n")
    assert granted_cores(tmp_path / "cgroup", tmp_path / "fs") == 2


def test_settings_of_the_user_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "affinity", lambda: 64)
    monkeypatch.setattr(machine, "granted_cores", lambda: 3)
    for name in WAITING:
        found = {name: "active", "MKL_NUM_THREADS": "5"}
        settle(found)
        assert found == {name: "active", "MKL_NUM_THREADS": "5"}
    found = {}
    settle(found)
    assert found["OMP_NUM_THREADS"] == "3" and found["GOMP_SPINCOUNT"] == str(SPINS)


def test_without_a_quota_the_number_of_threads_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "granted_cores", machine.affinity)
    found: dict[str, str] = {}
    settle(found)
    assert "OMP_NUM_THREADS" not in found


def test_the_processor_has_a_name() -> None:
    assert processor()


def told(command: list[str], **setting: str) -> str:
    """What the OpenMP that torch loaded says about itself."""
    kept = {name: value for name, value in os.environ.items() if name not in WAITING}
    paths = os.pathsep.join(str(ROOT / folder) for folder in ("", "kernels", "reference", "evals", "reports"))
    done = subprocess.run(
        [sys.executable, "-m", *command],
        env=kept | {"OMP_DISPLAY_ENV": "verbose", "PYTHONPATH": paths} | setting,
        capture_output=True, text=True, cwd=ROOT, check=True,
    )  # fmt: skip
    if "GOMP_SPINCOUNT" not in done.stderr:
        pytest.skip("this build of torch brings another OpenMP than GNU's")
    return done.stderr


COMMANDS = {
    "command line": ["qconvert", "inspect", str(SMALL_MODEL)],
    "tests": ["pytest", "-s", "-q", "-p", "no:cacheprovider", "--collect-only", "tests/reference/test_linear.py"],
}


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_threads_sleep_and_the_user_can_have_it_otherwise(command: list[str]) -> None:
    """As OpenMP read it when it was loaded: set any later, the variable would have no effect."""
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in told(command)
    assert "GOMP_SPINCOUNT = '77'" in told(command, GOMP_SPINCOUNT="77")
    assert f"'{SPINS}'" not in told(command, OMP_WAIT_POLICY="active")

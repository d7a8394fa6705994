"""What an installation brings: every extra has what its code imports, and the lock file one version of each."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from qconvert_evals.identity import MEASURED_WITH

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = (ROOT / "constraints.txt").read_text(encoding="utf-8")
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
CORE: list[str] = PROJECT["project"]["dependencies"]
PYTHONS = ("3.11", "3.12", "3.13")

# Folders, and what may be imported there. An import that needs more than its room's extra is named with its own.
ROOMS = {
    "qconvert": "core",
    "kernels/qconvert_kernels": "kernels",
    "reference/qconvert_reference": "core",
    "evals/qconvert_evals": "evals",
    "reports/qconvert_reports": "evals",
}
MORE = {"evals/qconvert_evals/tasks": "tasks", "evals/qconvert_evals/data.py": "data"}


def requirements(extra: str) -> set[str]:
    """Names of what an extra asks for by itself, the core included."""
    found = {canonicalize_name(Requirement(one).name) for one in CORE}
    for requirement in map(Requirement, EXTRAS.get(extra, [])):
        if requirement.name == "qconvert":
            found |= {name for inner in requirement.extras for name in requirements(inner)}
        else:
            found.add(canonicalize_name(requirement.name))
    return found


def pins(python: str, text: str = LOCK) -> dict[str, list[str]]:
    """name -> exact versions that the lock file has for it, for one Python on Linux."""
    place = {**default_environment(), "python_version": python, "python_full_version": f"{python}.1"}
    place |= {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        one = Requirement(line)
        (version,) = one.specifier
        assert version.operator == "==" and "*" not in version.version and one.url is None, line
        if one.marker is None or one.marker.evaluate({key: str(value) for key, value in place.items()}):
            found.setdefault(canonicalize_name(one.name), []).append(version.version)
    return found


def unlocked(python: str, text: str = LOCK) -> list[str]:
    """What pyproject.toml asks for and the lock file does not have exactly once, in a version that is asked for."""
    locked = pins(python, text)
    every = [*CORE, *(one for extra in EXTRAS.values() for one in extra), *PROJECT["build-system"]["requires"]]
    asked = [one for one in map(Requirement, every) if one.name != "qconvert"]
    wrong = []
    for one in asked:
        versions = locked.get(canonicalize_name(one.name), [])
        if len(versions) != 1 or not one.specifier.contains(versions[0]):
            wrong.append(f"{one}: {versions or 'not locked'}; run `make lock`")
    return wrong


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_is_locked_once(python: str) -> None:
    assert unlocked(python) == []


def test_a_requirement_that_is_not_locked_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    without = "\n".join(line for line in LOCK.splitlines() if not line.startswith("scipy=="))
    assert [one for one in unlocked("3.11", without) if one.startswith("scipy")]
    assert [one for one in unlocked("3.11", LOCK + "scipy==1.16.0\n") if "'1.16.0'" in one]  # twice
    assert [one for one in unlocked("3.11", re.sub("^click==.*", "click==7.0", LOCK, flags=re.M)) if "7.0" in one]
    monkeypatch.setitem(EXTRAS, "data", [*EXTRAS["data"], "polars>=1"])
    assert unlocked("3.11") == ["polars>=1: not locked; run `make lock`"]


def test_what_they_require_in_turn_is_locked() -> None:
    """Read from what is installed here. CUDA packages are named exactly by the build of torch that needs them."""
    locked = pins(f"{sys.version_info.major}.{sys.version_info.minor}")
    seen: set[str] = set()
    waiting = sorted(requirements("test") | requirements("check"))
    while waiting:
        name = waiting.pop()
        if name in seen or name.startswith(("nvidia-", "cuda-")):
            continue
        seen.add(name)
        assert name in locked, f"{name} is not in constraints.txt; run `make lock`"
        try:
            inner = [Requirement(one) for one in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue  # of another system
        waiting += [
            canonicalize_name(one.name) for one in inner if one.marker is None or one.marker.evaluate({"extra": ""})
        ]
    assert len(seen) > 60


def test_the_lock_names_no_place() -> None:
    for sign in ("://", "--", "@", "/", "nvidia", "cuda"):
        assert sign not in LOCK, sign


def test_set_up_takes_the_torch_and_triton_that_belong_together() -> None:
    asked = {
        Requirement(one).name: str(Requirement(one).specifier)
        for one in PROJECT["tool"]["uv"]["constraint-dependencies"]
    }
    assert asked == {"torch": "==2.13.0", "triton": "==3.7.1"}
    for python in PYTHONS:
        assert {name: f"=={pins(python)[name][0]}" for name in asked} == asked


def imported(file: Path) -> Iterator[str]:
    """Top-level packages that a file imports, anywhere in it, but those for the type checker alone."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    typing = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def extra_of(file: str) -> str:
    for folders in (MORE, ROOMS):
        for folder, extra in folders.items():
            if file == folder or file.startswith(folder + "/"):
                return extra
    raise AssertionError(f"{file} is in no room")


def imported_beyond() -> list[str]:
    """Imports that the extra of their room does not bring."""
    distributions = metadata.packages_distributions()
    beyond = []
    for room in ROOMS:
        for file in sorted((ROOT / room).rglob("*.py")):
            name = file.relative_to(ROOT).as_posix()
            for package in set(imported(file)) - set(sys.stdlib_module_names):
                needed = {canonicalize_name(one) for one in distributions.get(package, [package])}
                if not package.startswith("qconvert") and not needed & requirements(extra_of(name)):
                    beyond.append(f"{name} imports {package}, which qconvert[{extra_of(name)}] does not ask for")
    return beyond


def test_each_room_imports_what_its_extra_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert imported_beyond() == []
    monkeypatch.setitem(EXTRAS, "evals", [one for one in EXTRAS["evals"] if not one.startswith("jinja2")])
    assert any("page.py imports jinja2" in one for one in imported_beyond())


def test_versions_are_looked_up_of_what_is_there() -> None:
    assert set(MEASURED_WITH) <= requirements("evals")


def test_safetensors_are_opened_in_one_folder() -> None:
    opened = {
        file.parent.relative_to(ROOT).as_posix()
        for room in ROOMS
        for file in (ROOT / room).rglob("*.py")
        if "safetensors" in imported(file)
    }
    assert opened == {"qconvert/checkpoint"}

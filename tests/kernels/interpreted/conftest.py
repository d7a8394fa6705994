"""The tests of this folder run kernels in Triton's interpreter, which needs a process of its own.

TRITON_INTERPRET must be set before triton is imported and excludes compiling (tests/kernels/test_compiled.py). So one
child pytest with TRITON_INTERPRET=1 runs all selected tests of the folder. It starts as soon as they are known, on one
thread, beside whatever the parent has to test first; it writes down each report, and the parent hands them on as its
own when it comes to these tests. Selecting and failing work per case as usual.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHILD = "QCONVERT_INTERPRETED_REPORTS"  # set in the child: the file that takes its reports


@dataclass
class Child:
    """The process, and where it writes."""

    process: "subprocess.Popen[bytes]"
    folder: "tempfile.TemporaryDirectory[str]"
    written: Path  # its reports, one a line
    output: Path
    reports: dict[str, list[pytest.TestReport]] | None = None


RUNNING = pytest.StashKey[Child]()


class ReportWriter:
    """In the child: one line of JSON for each report."""

    def __init__(self, config: pytest.Config, file: Path) -> None:
        self.config, self.file = config, file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        with self.file.open("a") as file:
            file.write(json.dumps(data) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    if CHILD in os.environ:
        config.pluginmanager.register(ReportWriter(config, Path(os.environ[CHILD])))


def selected(session: pytest.Session) -> list[pytest.Item]:
    return [item for item in session.items if HERE in item.path.parents]


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Iterator[None]:
    """Starts the child in front of the first test of all, and ends it with the last, however that comes about."""
    items = [] if CHILD in os.environ or session.config.option.collectonly else selected(session)
    if not items:
        return (yield)
    session.stash[RUNNING] = child = _start(session, items)
    try:
        return (yield)
    finally:
        child.process.kill()
        child.process.wait()
        child.folder.cleanup()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    if CHILD in os.environ or HERE not in item.path.parents:
        return None
    child = item.session.stash[RUNNING]
    if child.reports is None:
        child.reports = _reports(item.session, child)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in child.reports[item.nodeid]:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _start(session: pytest.Session, items: list[pytest.Item]) -> Child:
    """Node ids go through a file: there may be more than a command line takes."""
    folder = tempfile.TemporaryDirectory()
    listed = Path(folder.name) / "tests.txt"
    listed.write_text("\n".join(item.nodeid for item in items))
    written, output = Path(folder.name) / "reports.jsonl", Path(folder.name) / "output.txt"
    written.touch()
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"@{listed}"],
            cwd=session.config.rootpath,
            env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", CHILD: str(written)},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    return Child(process, folder, written, output)


def _reports(session: pytest.Session, child: Child) -> dict[str, list[pytest.TestReport]]:
    """Waits for the child. Reports by node id; a test it never finished gets a failing one."""
    code = child.process.wait()
    items = selected(session)
    found: dict[str, list[pytest.TestReport]] = {item.nodeid: [] for item in items}
    for line in child.written.read_text().splitlines():
        report = session.config.hook.pytest_report_from_serializable(config=session.config, data=json.loads(line))
        if isinstance(report.longrepr, list):  # of a skip: JSON knows no tuples, pytest insists on one
            report.longrepr = tuple(report.longrepr)
        found[report.nodeid].append(report)
    for item in items:
        if not any(report.when == "teardown" for report in found[item.nodeid]):
            found[item.nodeid].append(_unfinished(item, code, child.output.read_text(errors="replace")))
    return found


def _unfinished(item: pytest.Item, code: int, output: str) -> pytest.TestReport:
    text = f"the interpreting pytest ended with {code} before this test did:\n{output[-4000:]}"
    return pytest.TestReport(item.nodeid, item.location, {}, outcome="failed", longrepr=text, when="call")

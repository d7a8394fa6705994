"""The tests of this folder run kernels in Triton's interpreter, which needs a process of its own.

TRITON_INTERPRET must be set before triton is imported and excludes compiling (tests/kernels/test_compiled.py). So the
first test of this folder starts one child pytest with TRITON_INTERPRET=1 for all selected tests of the folder; the
child writes down each report, and the parent hands them on as its own. Selecting and failing work per case as usual.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHILD = "QCONVERT_INTERPRETED_REPORTS"  # set in the child: the file that takes its reports
REPORTS = pytest.StashKey[dict[str, list[pytest.TestReport]]]()


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


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> bool | None:
    if CHILD in os.environ or HERE not in item.path.parents:
        return None
    session = item.session
    if REPORTS not in session.stash:
        session.stash[REPORTS] = _run_child(session)
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in session.stash[REPORTS][item.nodeid]:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def _run_child(session: pytest.Session) -> dict[str, list[pytest.TestReport]]:
    """Reports by node id; a test the child never finished gets a failing one."""
    items = [item for item in session.items if HERE in item.path.parents]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "reports.jsonl"
        file.touch()
        child = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"@{_listed(items, Path(folder))}"],
            cwd=session.config.rootpath,
            env=os.environ | {"TRITON_INTERPRET": "1", CHILD: str(file)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        lines = file.read_text().splitlines()
    found: dict[str, list[pytest.TestReport]] = {item.nodeid: [] for item in items}
    for line in lines:
        report = session.config.hook.pytest_report_from_serializable(config=session.config, data=json.loads(line))
        if isinstance(report.longrepr, list):  # of a skip: JSON knows no tuples, pytest insists on one
            report.longrepr = tuple(report.longrepr)
        found[report.nodeid].append(report)
    for item in items:
        if not any(report.when == "teardown" for report in found[item.nodeid]):
            found[item.nodeid].append(_unfinished(item, child))
    return found


def _listed(items: list[pytest.Item], folder: Path) -> Path:
    """Node ids go through a file: there may be more than a command line takes."""
    path = folder / "tests.txt"
    path.write_text("\n".join(item.nodeid for item in items))
    return path


def _unfinished(item: pytest.Item, child: "subprocess.CompletedProcess[str]") -> pytest.TestReport:
    text = f"the interpreting pytest ended with {child.returncode} before this test did:\n{child.stdout[-4000:]}"
    return pytest.TestReport(item.nodeid, item.location, {}, outcome="failed", longrepr=text, when="call")

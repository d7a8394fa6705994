"""The CI files: what actionlint cannot see. Inputs fit the action, and the action's steps do what they say."""

import os
import re
import stat
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
ACTION: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SCRIPTS = sorted((ROOT / ".ci").glob("drift-*"))
FAKE = """#!/usr/bin/env bash
printf '%s\\n' "$@" > "$SEEN"
[ -z "${TEXT:-}" ] || { mkdir -p "$REPORT"; printf '%s\\n' "$TEXT" | tee "$REPORT/report.md" > "$REPORT/summary.md"; }
exit "$CODE"
"""


def steps(workflow: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


def test_our_own_workflow_gives_the_action_what_it_takes() -> None:
    (used,) = [step["with"] for one in WORKFLOWS for step in steps(one) if step.get("uses") == "./"]
    declared = ACTION["inputs"]
    assert set(used) <= set(declared)
    assert {name for name, one in declared.items() if one.get("required")} <= set(used)
    assert (ROOT / used["baseline"]).is_file()


def test_the_action_reads_what_it_declares() -> None:
    text = (ROOT / "action.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"inputs\.([\w-]+)", text)) == set(ACTION["inputs"])
    outputs = set(re.findall(r"steps\.compare\.outputs\.(\w+)", text))
    assert outputs == set(re.findall(r'echo "(\w+)=', (ROOT / ".ci" / "drift-compare").read_text()))


def test_no_input_is_pasted_into_a_script() -> None:
    """An input inside `run:` would be code; through the environment it is data."""
    for step in [*ACTION["runs"]["steps"], *(step for one in WORKFLOWS for step in steps(one))]:
        assert "${{" not in step.get("run", "")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_used_and_can_run(script: Path) -> None:
    assert script.stat().st_mode & stat.S_IXUSR
    subprocess.run(["bash", "-n", script], check=True)
    named = [step for step in ACTION["runs"]["steps"] if f'.ci/{script.name}"' in step.get("run", "")]
    assert len(named) == 1
    for variable in named[0]["env"]:
        assert re.search(rf"\b{variable}\b", script.read_text())


def run(script: str, work: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], str]:
    """A step as GitHub runs it; returns it, and what it put into GITHUB_OUTPUT."""
    names = {"GITHUB_OUTPUT": "output", "GITHUB_STEP_SUMMARY": "summary", "SEEN": "seen", "REPORT": "drift report"}
    paths = {name: str(work / file) for name, file in names.items()}
    python = work / "python"
    python.write_text(FAKE)
    python.chmod(0o755)
    given = {"PATH": os.environ["PATH"], "PYTHON": str(python), **paths, **environment}
    done = subprocess.run([ROOT / ".ci" / script], cwd=work, env=given, capture_output=True, text=True)
    output = work / "output"
    return done, output.read_text() if output.exists() else ""


@pytest.mark.parametrize(
    "code, verdict", [(0, "pass"), (1, "fail"), (3, "inconclusive"), (2, "error"), (70, "error"), (137, "error")]
)
def test_exit_codes_become_verdicts(code: int, verdict: str, tmp_path: Path) -> None:
    done, output = run("drift-compare", tmp_path, BF16="bf16", FP8="fp8", CODE=str(code), TEXT="# the report")
    assert done.returncode == 0, done.stderr
    assert f"verdict={verdict}\n" in output
    told = verdict != "error"  # a report left over from another run is not this one's
    assert ("comment=" in output) == told
    assert ("# the report" in (tmp_path / "summary").read_text()) == told
    assert (f"exit code {code}" in (tmp_path / "summary").read_text()) != told


@pytest.mark.parametrize("code", [0, 1, 70])
def test_the_report_of_an_earlier_run_is_not_shown_as_this_ones(code: int, tmp_path: Path) -> None:
    report = tmp_path / "drift report"
    report.mkdir()
    for name in ("report.md", "summary.md"):
        (report / name).write_text("# an old report")
        os.utime(report / name, (1, 1))
    _, output = run("drift-compare", tmp_path, BF16="bf16", FP8="fp8", CODE=str(code), TEXT="")
    summary = tmp_path / "summary"
    assert "comment=" not in output and "old report" not in (summary.read_text() if summary.exists() else "")


def test_arguments_arrive_as_they_were_given(tmp_path: Path) -> None:
    trap = f"mixed=$(touch {tmp_path}/ran)"
    run(
        "drift-compare", tmp_path, BF16="a folder/bf16", INT4="", CANDIDATES=f"g64=b c\n\n{trap}\n", TASKS="mmlu,gsm8k",
        ARGUMENTS="--tokens=4096\n--data=my text.jsonl", BUDGET="drift.toml", CODE="0",
        BASELINE="old.json", GATE_BASELINE="true",
    )  # fmt: skip
    seen = (tmp_path / "seen").read_text().splitlines()
    assert seen == [
        "-m", "qconvert", "compare", "--bf16", "a folder/bf16", "--report", str(tmp_path / "drift report"),
        "--budget", "drift.toml", "--baseline", "old.json", "--gate-baseline", "--tasks", "mmlu,gsm8k",
        "--candidate", "g64=b c", "--candidate", trap,
        "--tokens=4096", "--data=my text.jsonl",
    ]  # fmt: skip
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "verdict, allowed, code",
    [
        ("pass", "false", 0),
        ("fail", "true", 1),
        ("inconclusive", "false", 3),
        ("inconclusive", "true", 0),
        ("error", "true", 2),
        ("", "true", 2),
    ],
)
def test_the_last_step_decides(verdict: str, allowed: str, code: int, tmp_path: Path) -> None:
    done, _ = run("drift-verdict", tmp_path, VERDICT=verdict, ALLOW_INCONCLUSIVE=allowed)
    assert done.returncode == code
    assert ("::" in done.stdout) == (verdict != "pass")


def test_an_interpreter_that_was_named_is_taken(tmp_path: Path) -> None:
    done, output = run("drift-install", tmp_path, ASKED_PYTHON="/somewhere/python")
    assert done.returncode == 0 and output == "python=/somewhere/python\n"


FAKE_VENV = """#!/usr/bin/env bash
mkdir -p "$3/bin"
cat > "$3/bin/python" << 'END'
#!/usr/bin/env bash
printf '%s\\n' "$@" "$PIP_CONSTRAINT" "$PIP_BUILD_CONSTRAINT" > "$SEEN"
END
chmod +x "$3/bin/python"
"""


@pytest.mark.parametrize(
    "tasks, arguments, extras",
    [("", "", "evals"), ("mmlu", "--tokens=9", "evals,tasks"), ("", "--tokens=9\n--data=org/set", "evals,data")],
)
def test_the_action_installs_what_it_needs_by_the_lock_file(
    tasks: str, arguments: str, extras: str, tmp_path: Path
) -> None:
    fake = tmp_path / "bin" / "python3"
    fake.parent.mkdir()
    fake.write_text(FAKE_VENV)
    fake.chmod(0o755)
    path = f"{fake.parent}:{os.environ['PATH']}"
    places = {"PATH": path, "RUNNER_TEMP": str(tmp_path), "GITHUB_ACTION_PATH": str(ROOT)}
    done, output = run("drift-install", tmp_path, **places, TASKS=tasks, ARGUMENTS=arguments)
    assert done.returncode == 0, done.stderr
    assert output == f"python={tmp_path}/qconvert/bin/python\n"
    *_, package, constraint, build_constraint = (tmp_path / "seen").read_text().splitlines()
    assert package == f"qconvert[{extras}] @ file://{ROOT}"
    assert constraint == build_constraint
    assert Path(constraint).read_text() == (ROOT / "constraints.txt").read_text()


def test_every_extra_has_a_smoke_test_of_its_own() -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    assert set(jobs["smoke"]["strategy"]["matrix"]["extra"]) == {"core"} | extras - {"test", "check"}
    script = (ROOT / ".ci" / "smoke").read_text()
    for extra in jobs["smoke"]["strategy"]["matrix"]["extra"]:
        assert re.search(rf"^    {extra}\) ", script, re.M)


LIES = {
    "a code that is not the promised one": ("0", "", "exit 3"),
    "a text that is not there": ("2", "pip install", "echo nothing to install; exit 2"),
    "a traceback": ("0/1/3", "", "echo 'Traceback (most recent call last):'; exit 1"),
}


@pytest.mark.parametrize("lie", LIES)
def test_the_smoke_test_sees_a_promise_that_is_not_kept(lie: str, tmp_path: Path) -> None:
    """The function that every promise goes through, alone: it must end the run."""
    text = (ROOT / ".ci" / "smoke").read_text()
    function = text[text.index("as() {") : text.index("runs() {")]
    codes, said, command = LIES[lie]
    program = f"set -euo pipefail\n{function}\nas '{codes}' '{said}' bash -c \"{command}\"\necho kept"
    done = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "smoke: expected" in done.stdout and "kept" not in done.stdout
    kept = subprocess.run(
        ["bash", "-c", f"{function}\nas 0/3 '' true && as 0/3 no bash -c 'echo no; exit 3'"], cwd=tmp_path
    )
    assert kept.returncode == 0


def test_the_demo_elsewhere_must_pass(tmp_path: Path) -> None:
    """Exit code 3, as on the machines that this is for, ends CI."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "demo-elsewhere").write_text((ROOT / ".ci" / "demo-elsewhere").read_text())
    fake = tmp_path / ".venv" / "bin" / "qconvert"
    fake.parent.mkdir(parents=True)
    for code in (0, 3):
        fake.write_text(f'#!/usr/bin/env bash\necho "$ONEDNN_MAX_CPU_ISA $OMP_NUM_THREADS"\nexit {code}\n')
        fake.chmod(0o755)
        done = subprocess.run(["bash", tmp_path / ".ci" / "demo-elsewhere"], capture_output=True, text=True)
        assert done.stdout.startswith("AVX2 1\n")
        assert done.returncode == (1 if code else 0)

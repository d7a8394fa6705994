"""Faults of benchmarks: two lanes that did not get the same question. Each returns the message that stops the run.

The lanes are the shipped model twice; what differs is beside the weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from qconvert.errors import UserError
from qconvert_evals.small_model_files import small_model_path
from qconvert_evals.tasks import loading
from qconvert_evals.tasks.lane_run import run_lane
from qconvert_evals.tasks.pairing import check_joined
from qconvert_evals.tasks.settings import TaskSettings
from qconvert_evals.tasks.stage import Benchmarks
from qconvert_reference.lane import Lane
from qconvert_reference.linear import Numerics

TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
TASK = """
task: mutations_own
dataset_path: json
dataset_kwargs: {data_files: {test: "FILE"}}
test_split: test
fewshot_split: test
num_fewshot: 2
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: ["a", "b"]
doc_to_target: "{{y}}"
"""


def _own_task(work: Path) -> Path:
    folder = work / "task"
    folder.mkdir()
    rows = [json.dumps({"q": f"question {number}", "y": number % 2}) for number in range(12)]
    (folder / "rows.jsonl").write_text("\n".join(rows) + "\n")
    (folder / "own.yaml").write_text(TASK.replace("FILE", str(folder / "rows.jsonl")))
    return folder


def _lane(name: str, folder: Path) -> Lane:
    return Lane.open(name, folder, Numerics())


def other_few_shot_seed(work: Path) -> str:
    """Another seed draws other examples into the prompts."""
    folder = _own_task(work)
    lane, runs = _lane("fp8", small_model_path()), []
    for seed in (1, 2):
        settings = TaskSettings(("mutations_own",), include_path=(folder,), limit=4, fewshot_seed=seed)
        runs.append(run_lane(lane, loading.load_tasks(settings), settings, lambda stage, total: lambda: None))
    check_joined(runs[0], runs[0])
    return _message(lambda: check_joined(*runs))


def _beside_the_weights(work: Path, change: Callable[[Path], None], chat: bool = False) -> str:
    base, other = (Path(shutil.copytree(small_model_path(), work / name)) for name in ("base", "other"))
    for folder in (base, other):
        (folder / "chat_template.jinja").write_text(TEMPLATE)
    settings = TaskSettings(("small_math",), apply_chat_template=chat)
    Benchmarks.prepare(settings, (_lane("bf16", base), _lane("fp8", other)), "")
    change(other)
    return _message(lambda: Benchmarks.prepare(settings, (_lane("bf16", base), _lane("fp8", other)), ""))


def no_chat_template(work: Path) -> str:
    """A converter that copies the weights and forgets the template."""
    return _beside_the_weights(work, lambda folder: (folder / "chat_template.jinja").unlink(), chat=True)


def other_chat_template(work: Path) -> str:
    """An older template."""
    return _beside_the_weights(
        work, lambda folder: (folder / "chat_template.jinja").write_text(TEMPLATE + "!") and None, chat=True
    )


def other_end_of_text(work: Path) -> str:
    """generation_config.json names another token."""

    def change(folder: Path) -> None:
        path = folder / "generation_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": 5}))

    return _beside_the_weights(work, change)


def _message(run: Callable[[], object]) -> str:
    try:
        run()
    except UserError as error:
        return str(error).splitlines()[0]
    return ""

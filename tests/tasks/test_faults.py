"""The stage as a whole, and each fault that would make two lanes' numbers incomparable, by its message."""

import builtins
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from qconvert.errors import UserError
from qconvert_evals.tasks import loading
from qconvert_evals.tasks.lane_run import run_lane
from qconvert_evals.tasks.pairing import check_joined
from qconvert_evals.tasks.settings import TaskSettings
from qconvert_evals.tasks.stage import Benchmarks
from qconvert_reference.lane import Lane
from qconvert_reference.linear import Numerics
from tests.tasks.conftest import quiet, write_model

OWN = """
task: own
dataset_path: json
dataset_kwargs: {data_files: {test: "FILE"}}
test_split: test
fewshot_split: test
num_fewshot: 1
output_type: multiple_choice
doc_to_text: "{{q}}"
doc_to_choice: ["a", "b"]
doc_to_target: "{{y}}"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's own task, read without a network."""
    made = tmp_path_factory.mktemp("own")
    (made / "rows.jsonl").write_text("".join(f'{{"q": "question {n}", "y": {n % 2}}}\n' for n in range(6)))
    (made / "own.yaml").write_text(OWN.replace("FILE", str(made / "rows.jsonl")))
    return made


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("faults") / "bf16")


def lanes(*folders: Path) -> list[Lane]:
    return [Lane.open(f"lane{n}", one, Numerics(torch.float32)) for n, one in enumerate(folders)]


def settings(folder: Path, **others: Any) -> TaskSettings:
    return TaskSettings(("own",), include_path=(folder,), **others)


def test_a_lane_beside_itself_differs_in_nothing(base: Path, folder: Path) -> None:
    pair = lanes(base, base)
    found, record = Benchmarks.prepare(settings(folder, limit=4), pair, "").run(pair, quiet)
    (row,) = [one for one in record["rows"] if one["metric"] == "acc"]
    assert row["n"] == 4 and row["difference"][0] == row["lost"] == row["gained"] == 0 and row["asked"]
    assert (row["base"] == row["score"] and row["base"][1] < row["base"][0] < row["base"][2]) or row["base"][0] in (
        0,
        1,
    )
    assert {one.name for one in found[1].measurements} >= {"bench.own.acc", "bench.own.acc_difference"}
    assert not found[0].missing


def test_other_examples_in_the_prompts_of_one_lane(base: Path, folder: Path) -> None:
    one, two = (settings(folder, fewshot_seed=seed) for seed in (1, 2))
    runs = [run_lane(lanes(base)[0], loading.load_tasks(each), each, quiet) for each in (one, two)]
    check_joined(runs[0], runs[0])
    with pytest.raises(UserError, match="cannot be joined: the prompt differs"):
        check_joined(*runs)


def test_a_lane_without_chat_template_is_named(base: Path, folder: Path, tmp_path: Path) -> None:
    with_template = Path(shutil.copytree(base, tmp_path / "with"))
    (with_template / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    asked = settings(folder, apply_chat_template=True)
    with pytest.raises(UserError, match="lane lane1 has no chat template; lane lane0 has one"):
        Benchmarks.prepare(asked, lanes(with_template, base), "")
    other = Path(shutil.copytree(with_template, tmp_path / "other"))
    (other / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    with pytest.raises(UserError, match="lane lane1 has another chat template"):
        Benchmarks.prepare(asked, lanes(with_template, other), "")


def test_another_tokenizer_or_other_ends_are_named(base: Path, folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(base, tmp_path / "other"))
    (other / "generation_config.json").write_text('{"eos_token_id": 5}')
    with pytest.raises(UserError, match="lane1 begins texts or ends outputs with other tokens"):
        Benchmarks.prepare(settings(folder), lanes(base, other), "")
    (other / "tokenizer.json").write_text((base / "tokenizer.json").read_text() + " ")
    with pytest.raises(UserError, match="lane1 has another tokenizer"):
        Benchmarks.prepare(settings(folder), lanes(base, other), "")


@pytest.mark.slow  # reads all of lm-eval's task files
def test_unknown_tasks_and_unreachable_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", offline)
    with pytest.raises(UserError, match=r"needs the data set json.*(\n.*)*no network(\n.*)*run once"):
        loading.load_tasks(settings(folder))
    monkeypatch.setattr(loading.TaskManager, "all_tasks", property(lambda self: list(self.task_index)))
    with pytest.raises(UserError, match="no task called small_mth"):
        loading.load_tasks(TaskSettings(("small_mth",)))


def test_tasks_that_write_are_missing_where_a_model_is_too_large(base: Path) -> None:
    pair = lanes(base, base)
    found, record = Benchmarks.prepare(TaskSettings(("small_math",)), pair, "too large").run(pair, quiet)
    assert record["left_out"] == {"small_math": "too large"} and [one.why for one in found[1].missing] == ["too large"]


def test_a_missing_extra_is_named(base: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("lm_eval"):
            raise ModuleNotFoundError("No module named 'lm_eval'", name="lm_eval")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"qconvert\[tasks\]"):
        Benchmarks.prepare(settings(folder), lanes(base, base), "")


def test_shipped_tasks_load_without_a_hint_for_each(caplog: pytest.LogCaptureFixture) -> None:
    loading.load_tasks(TaskSettings(("small_math", "small_prose")))
    assert "Custom kwargs" not in caplog.text

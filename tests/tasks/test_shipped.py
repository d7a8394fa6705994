"""The shipped tasks: their documents are what the script makes, and the shipped model does better than by chance.

Chance is the best that one and the same answer to everything would score.
"""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from qconvert_evals.small_model_files import small_model_path
from qconvert_evals.tasks.lane_run import run_lane
from qconvert_evals.tasks.loading import SHIPPED, load_tasks
from qconvert_evals.tasks.measure import score, values_of
from qconvert_evals.tasks.scoring import merge
from qconvert_evals.tasks.settings import TaskSettings
from qconvert_reference.lane import Lane
from qconvert_reference.linear import Numerics
from tests.tasks.conftest import quiet
from tests.tiny import tiny_config, write_tiny_checkpoint
from training import benchmarks

# Documents that are enough, also where another order of sums turns an answer or two; the whole files take longer.
LIMITS = {
    "small_code": 96, "small_math": 64, "small_recall": 16, "small_needle_16": 48, "small_needle_48": 48,
    "small_needle_128": 96,
}  # fmt: skip


def documents(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (SHIPPED / f"{name}.jsonl").read_text("utf-8").split("\n") if line]


@pytest.fixture(scope="module")
def small() -> Lane:
    """As a comparison opens its base."""
    return Lane.open("bf16", small_model_path(), Numerics())


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Lane:
    """Random weights behind the same tokenizer."""
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("untrained"), tiny_config(vocab_size=1024), shards=1)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(small_model_path() / name, folder / name)
    return Lane.open("untrained", folder, Numerics())


def above_chance(lane: Lane, task: str) -> bool:
    """Whether the whole interval of the score is."""
    settings = TaskSettings((task,), limit=LIMITS[task])
    ((key, series),) = run_lane(lane, load_tasks(settings), settings, quiet).series.items()
    found = score(values_of(key, series), series)
    answers = Counter(row["answer"] for row in documents(task.removeprefix("small_"))[: LIMITS[task]])
    assert found.n == answers.total() and found.low is not None
    return found.low > answers.most_common(1)[0][1] / found.n


@pytest.mark.slow
@pytest.mark.parametrize("task", LIMITS)
def test_the_shipped_model_is_above_chance(task: str, small: Lane) -> None:
    assert above_chance(small, task)


@pytest.mark.parametrize("task", ["small_code", "small_needle_16"])
def test_a_model_that_has_learned_nothing_is_not(task: str, untrained: Lane) -> None:
    assert not above_chance(untrained, task)


def test_every_task_has_a_test() -> None:
    scored = {path.stem for path in SHIPPED.glob("small_*.yaml") if "bits_per_byte" not in path.read_text("utf-8")}
    assert scored == set(LIMITS)


def test_documents_are_what_the_script_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks, "SHIPPED", tmp_path)
    benchmarks.main()
    shipped = sorted(path.name for path in SHIPPED.glob("*.jsonl"))
    assert sorted(path.name for path in tmp_path.iterdir()) == shipped
    for name in shipped:
        assert (tmp_path / name).read_text("utf-8") == (SHIPPED / name).read_text("utf-8"), name


def test_needles_stand_as_far_back_as_they_say_and_cost_one_row_each() -> None:
    tokenizer = Tokenizer.from_file(str(small_model_path() / "tokenizer.json"))
    for length in benchmarks.HAYSTACKS:
        rows = documents(f"needle_{length}")
        texts = [[tokenizer.encode(row["question"] + choice).ids for choice in row["choices"]] for row in rows]
        merged, _ = merge([tuple(ids[:-1]) for choices in texts for ids in choices])
        assert len(merged) == len(rows)
        for row in rows:
            value = row["choices"][row["answer"]].strip()
            before, after = row["question"].split(f"// {value}\n")
            assert value in before and value not in after
            assert length <= len(tokenizer.encode(after).ids) <= length + 20


def test_indentations_are_right_equally_often() -> None:
    assert set(Counter(row["answer"] for row in documents("code")).values()) == {24}
    for row in documents("code"):
        assert len({choice.strip() for choice in row["choices"]}) == 1 < len(set(row["choices"]))

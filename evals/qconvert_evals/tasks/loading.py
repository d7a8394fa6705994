"""Finds tasks by name and loads their data, so that everything that can be wrong shows before anything is computed.

Looked for in this order: folders of `--include-path`, the tasks shipped here (`small` and its parts), lm-eval's own
tasks. A name in a user's folder therefore hides the others. The first two are read without lm-eval's thousands of
files, and shipped data need no network.

Refused: tasks that run generated code (lm-eval calls them unsafe) and tasks with images or sound. Left out: task
definitions by path or inline.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
from lm_eval.tasks import TaskManager

from qconvert.errors import UserError, first_line
from qconvert_evals.tasks.settings import TaskSettings

SHIPPED = Path(__file__).parent / "shipped"


class _Unreachable(Exception):
    """A data set that could not be read; carries its name."""

    def __init__(self, name: str, part: str | None, cause: Exception) -> None:
        super().__init__(name)
        self.name, self.part, self.found = name, part, f"{type(cause).__name__}: {first_line(cause)}"


def load_tasks(settings: TaskSettings) -> dict[str, Any]:
    """lm-eval's dictionary of tasks and groups, their documents in memory; UserError where one cannot be run."""
    local = TaskManager(include_path=[SHIPPED, *settings.include_path], include_defaults=False)
    manager = local
    if any(name not in local.task_index for name in settings.names):
        manager = TaskManager(include_path=[SHIPPED, *settings.include_path])
    for name in settings.names:
        if name not in manager.task_index:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3)
            raise UserError(
                f"there is no task called {name}",
                where=", ".join([*map(str, settings.include_path), "shipped tasks", "lm-eval's tasks"]),
                fix=f"did you mean {' or '.join(near)}?" if near else "`lm-eval ls tasks` lists them",
            )
    loaded = _load(manager, settings)
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False) or getattr(task, "MULTIMODAL", False):
            kind = "runs code that the model wrote" if getattr(task, "UNSAFE_CODE", False) else "needs images or sound"
            raise UserError(f"task {name} {kind}, which is not supported", fix="leave it out of --tasks")
        _set_fewshot(task, name, settings.num_fewshot)
    return loaded


def _load(manager: Any, settings: TaskSettings) -> dict[str, Any]:
    try:
        with _data_sets_by_name(), _without_hint():
            loaded: dict[str, Any] = manager.load(list(settings.names))
    except _Unreachable as error:
        wanted = ", ".join(repr(one) for one in (error.name, error.part) if one)
        raise UserError(
            f"a task needs the data set {error.name}{f' ({error.part})' if error.part else ''}, which cannot be read",
            where=", ".join(settings.names),
            found=error.found,
            fix=f'with a network, run once: python -c "import datasets; datasets.load_dataset({wanted})"; '
            "it is then read from the cache in HF_HOME",
        ) from error
    except (ImportError, KeyError, TypeError, ValueError, AssertionError, OSError) as error:
        if not settings.include_path:
            raise
        raise UserError(
            "a task cannot be loaded",
            where=", ".join(settings.names),
            found=f"{type(error).__name__}: {first_line(error)}",
        ) from error
    return loaded


@contextmanager
def _data_sets_by_name() -> Iterator[None]:
    """While tasks load: a data set that cannot be read says its name, which lm-eval's own error does not."""
    real = datasets.load_dataset

    def load(path: str, name: str | None = None, **settings: Any) -> Any:
        try:
            return real(path, name, **settings)
        except Exception as error:  # offline, unknown, gated: `datasets` has no common class for them
            raise _Unreachable(path, name, error) from error

    datasets.load_dataset = load
    try:
        yield
    finally:
        datasets.load_dataset = real


@contextmanager
def _without_hint() -> Iterator[None]:
    """lm-eval warns for every task whose rows come from a function, as the shipped ones do, that it could be given
    arguments; other warnings stay."""
    logger = logging.getLogger("lm_eval.api.task")

    def worth_saying(record: logging.LogRecord) -> bool:
        return "Custom kwargs can be passed" not in record.getMessage()

    logger.addFilter(worth_saying)
    try:
        yield
    finally:
        logger.removeFilter(worth_saying)


def _set_fewshot(task: Any, name: str, wanted: int | None) -> None:
    """As lm-eval does: a task that says 0 keeps it, and one that says nothing has none."""
    stated = task.get_config("num_fewshot")
    if wanted is not None and stated != 0:
        if wanted and task.OUTPUT_TYPE == "loglikelihood_rolling":
            raise UserError(f"task {name} measures whole texts, so it has no examples", fix="leave out --num-fewshot")
        task.set_config(key="num_fewshot", value=wanted)
    elif stated is None:
        task.set_config(key="num_fewshot", value=0)

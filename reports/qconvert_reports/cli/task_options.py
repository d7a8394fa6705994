"""The options of `qconvert compare` that are about benchmarks, gathered into one argument `tasks`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

OPTIONS = (
    click.option(
        "--tasks",
        "task_list",
        metavar="NAME,...",
        help="Benchmarks to run on every lane: tasks or groups of lm-eval, one's own, or `small` (shipped).",
    ),
    click.option(
        "--include-path",
        multiple=True,
        type=click.Path(path_type=Path, file_okay=False),
        help="A folder of one's own lm-eval tasks (YAML); its code is run. May be repeated.",
    ),
    click.option("--limit", type=click.IntRange(min=1), help="Only the first N documents of each task."),
    click.option(
        "--num-fewshot", type=click.IntRange(min=0), help="Examples in each prompt; default: as the task says."
    ),
    click.option("--apply-chat-template", is_flag=True, help="Render prompts with the checkpoint's chat template."),
    click.option(
        "--reasoning-parser",
        type=click.Choice(["none", "qwen3", "deepseek-r1"]),
        default="none",
        show_default=True,
        help="Take the model's thought off before an answer is scored.",
    ),
    click.option(
        "--max-gen-toks",
        type=click.IntRange(min=1),
        help="Longest output, thought included; default: as the task says.",
    ),
)


def task_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options; the command gets `tasks`, a TaskSettings or None."""

    @wraps(command)
    def gathered(
        *args: Any,
        task_list: str | None,
        include_path: tuple[Path, ...],
        limit: int | None,
        num_fewshot: int | None,
        apply_chat_template: bool,
        reasoning_parser: str,
        max_gen_toks: int | None,
        **others: Any,
    ) -> Any:
        from qconvert.errors import UserError
        from qconvert_evals.tasks.settings import TaskSettings, task_names

        tasks = None
        given = {
            "include_path": include_path,
            "limit": limit,
            "num_fewshot": num_fewshot,
            "apply_chat_template": apply_chat_template,
            "reasoning_parser": reasoning_parser,
            "max_gen_toks": max_gen_toks,
        }
        if task_list is not None:
            tasks = TaskSettings(task_names(task_list), **given)  # type: ignore[arg-type]
        else:
            idle = [name for name, value in given.items() if value not in (None, (), False, "none")]
            if idle:
                raise UserError(
                    f"--{idle[0].replace('_', '-')} says how to run tasks, but none is named", fix="give --tasks"
                )
        return command(*args, tasks=tasks, **others)

    for option in reversed(OPTIONS):
        gathered = option(gathered)
    return gathered

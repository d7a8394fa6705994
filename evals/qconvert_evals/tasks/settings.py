"""What to run: plain settings, so that the command line needs no lm-eval to build them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qconvert.errors import UserError
from qconvert_evals.tasks.reasoning import PARSERS

FEWSHOT_SEED = 1234  # lm-eval's own default


@dataclass(frozen=True)
class TaskSettings:
    """Tasks and how they are run; the same for every lane.

    `limit` takes the first documents of each task. `num_fewshot` None leaves what the task says. `max_gen_toks`
    replaces what tasks say about the length of an answer, thought included.
    """

    names: tuple[str, ...]
    include_path: tuple[Path, ...] = ()
    limit: int | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = False
    reasoning_parser: str = "none"
    max_gen_toks: int | None = None
    fewshot_seed: int = FEWSHOT_SEED

    def __post_init__(self) -> None:
        if not self.names:
            raise UserError("no task is named", expected="--tasks NAME,NAME,...")
        if self.reasoning_parser not in PARSERS:
            expected = ", ".join(PARSERS)
            raise UserError("unknown reasoning parser", expected=expected, found=self.reasoning_parser)
        for path in self.include_path:
            if not path.is_dir():
                raise UserError(
                    "no such folder of tasks", where=str(path), fix="give --include-path a folder of YAML files"
                )

    def record(self) -> dict[str, Any]:
        """As plain data for results.json."""
        return {**asdict(self), "names": list(self.names), "include_path": [str(path) for path in self.include_path]}


def task_names(text: str) -> tuple[str, ...]:
    """`mmlu, gsm8k` -> ("mmlu", "gsm8k"), each once."""
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))

"""Reasoning parsers: the thought of a model apart from its answer, so that only the answer is scored.

    output  =  [white space] [<think>] thought </think> answer

    none          everything is answer
    qwen3         a thought is there if its tags say so: opened by the output or by the prompt, or closed by the output.
                  Without any of them the model answered at once, and everything is answer
    deepseek-r1   every output begins inside a thought, tag or not, unless the prompt itself closed it

The answer is what follows the last closing tag, without the white space in front. A thought that never ends was cut
off: it has no answer ("" is scored, and counted as cut off), whatever the thought says. A new thought opened behind the
last closing tag and not closed is one as well; what stood before it stays the answer.

The prompt opens a thought when it ends with the tag (a chat template may do that), and closes it when it ends with the
closing tag (templates do so to switch thinking off). Tags elsewhere in the prompt are somebody's text.

Left out: tool calls, and other tags than these two.
"""

from __future__ import annotations

from dataclasses import dataclass

OPEN, CLOSE = "<think>", "</think>"
PARSERS = ("none", "qwen3", "deepseek-r1")


@dataclass(frozen=True)
class Parsed:
    """An output taken apart; `thought` is None where there is none, `cut_off` says that it has no end."""

    answer: str
    thought: str | None = None
    cut_off: bool = False


def begins_in_thought(parser: str, prompt: str) -> bool:
    """Whether the first token of the output is already part of a thought."""
    end = prompt.rstrip()
    if parser == "none" or end.endswith(CLOSE):
        return False
    return parser == "deepseek-r1" or end.endswith(OPEN)


def phase(parser: str, prompt: str, output: str) -> str:
    """Where an unfinished output is: "thought", "answer", or "undecided" while it may still open a thought."""
    if parser == "none" or CLOSE in output:
        return "answer"
    start = output.lstrip()
    if begins_in_thought(parser, prompt) or start.startswith(OPEN):
        return "thought"
    return "undecided" if OPEN.startswith(start) else "answer"


def parse(parser: str, prompt: str, output: str) -> Parsed:
    """Take one finished output apart."""
    if parser == "none":
        return Parsed(output)
    before, closed, after = output.rpartition(CLOSE)
    if closed:
        answer, reopened, rest = after.partition(OPEN)
        thought = _inside(before) + rest
        return Parsed(answer.lstrip(), thought.strip(), bool(reopened))
    if begins_in_thought(parser, prompt) or output.lstrip().startswith(OPEN):
        return Parsed("", _inside(output).strip(), True)
    return Parsed(output)


def _inside(text: str) -> str:
    """A thought without its opening tag."""
    return text.lstrip().removeprefix(OPEN)

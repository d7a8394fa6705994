"""Thought and answer: every form an output can take, and any output cut off anywhere."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qconvert_evals.tasks.reasoning import CLOSE, OPEN, PARSERS, Parsed, begins_in_thought, parse, phase

PLAIN, OPENED, CLOSED = "Question?", "Question?<think>\n", "Question?<think>\n\n</think>\n\n"

# parser, prompt, output -> answer, thought, cut off
CASES = [
    ("none", PLAIN, "<think>a</think>b", Parsed("<think>a</think>b")),
    ("none", OPENED, "a</think>b", Parsed("a</think>b")),
    ("none", PLAIN, "", Parsed("")),
    ("qwen3", PLAIN, "<think>\na\n</think>\n\nb\n", Parsed("b\n", "a")),
    ("qwen3", PLAIN, "\n <think>a</think>b", Parsed("b", "a")),
    ("qwen3", PLAIN, "b", Parsed("b")),
    ("qwen3", PLAIN, "  b", Parsed("  b")),
    ("qwen3", PLAIN, "", Parsed("")),
    ("qwen3", PLAIN, "<think>\n\n</think>\n\nb", Parsed("b", "")),
    ("qwen3", PLAIN, "<think>a", Parsed("", "a", True)),
    ("qwen3", PLAIN, "<think>", Parsed("", "", True)),
    ("qwen3", PLAIN, "a</think>b", Parsed("b", "a")),  # opened by a template that the prompt does not show
    ("qwen3", OPENED, "a</think>b", Parsed("b", "a")),
    ("qwen3", OPENED, "<think>a</think>b", Parsed("b", "a")),  # some models open it once more
    ("qwen3", OPENED, "a", Parsed("", "a", True)),
    ("qwen3", OPENED, "", Parsed("", "", True)),
    ("qwen3", OPENED, "</think>b", Parsed("b", "")),
    ("qwen3", OPENED, "a</think>", Parsed("", "a")),  # thought out, and then nothing said
    ("qwen3", CLOSED, "b", Parsed("b")),
    ("qwen3", PLAIN, "b mentions <think> in passing", Parsed("b mentions <think> in passing")),
    ("qwen3", PLAIN, "<think>is <think> a tag?</think>b", Parsed("b", "is <think> a tag?")),
    ("qwen3", PLAIN, "<think>a</think>b<think>c</think>d", Parsed("d", "a</think>b<think>c")),
    ("qwen3", PLAIN, "<think>a</think>b<think>c", Parsed("b", "ac", True)),
    ("deepseek-r1", PLAIN, "a</think>b", Parsed("b", "a")),
    ("deepseek-r1", PLAIN, "<think>a</think>b", Parsed("b", "a")),
    ("deepseek-r1", PLAIN, "a", Parsed("", "a", True)),
    ("deepseek-r1", PLAIN, "", Parsed("", "", True)),
    ("deepseek-r1", OPENED, "a</think>b", Parsed("b", "a")),
    ("deepseek-r1", CLOSED, "b", Parsed("b")),
    ("deepseek-r1", CLOSED, "<think>a</think>b", Parsed("b", "a")),
]


@pytest.mark.parametrize(("parser", "prompt", "output", "expected"), CASES)
def test_every_form(parser: str, prompt: str, output: str, expected: Parsed) -> None:
    assert parse(parser, prompt, output) == expected


@pytest.mark.parametrize("parser", PARSERS)
def test_tags_inside_the_prompt_are_somebodys_text(parser: str) -> None:
    prompt = "What does <think> mean? Answer:"
    assert begins_in_thought(parser, prompt) == (parser == "deepseek-r1")
    assert parse(parser, prompt, "b").answer == ("" if parser == "deepseek-r1" else "b")


def test_phases_of_a_growing_output() -> None:
    text = "\n<think>a\n\nb</think>\n\nc"
    seen = [phase("qwen3", PLAIN, text[:end]) for end in range(len(text) + 1)]
    opened, closed = text.index(OPEN) + len(OPEN), text.index(CLOSE) + len(CLOSE)
    assert seen == ["undecided"] * opened + ["thought"] * (closed - opened) + ["answer"] * (len(text) + 1 - closed)
    assert [phase("qwen3", PLAIN, one) for one in ("", "<", "<t", "<table>", "word")] == [
        "undecided", "undecided", "undecided", "answer", "answer"
    ]  # fmt: skip
    assert phase("qwen3", OPENED, "") == phase("deepseek-r1", PLAIN, "") == "thought"
    assert phase("none", OPENED, "") == "answer"


WORDS = st.text(alphabet="ab \n<>/think", max_size=20).filter(lambda text: OPEN not in text and CLOSE not in text)


@given(WORDS, WORDS, st.sampled_from(["qwen3", "deepseek-r1"]), st.booleans())
def test_thought_and_answer_come_back(thought: str, answer: str, parser: str, opened: bool) -> None:
    """Whatever they hold, as long as neither writes a tag."""
    output = thought + CLOSE + "\n\n" + answer if opened else OPEN + thought + CLOSE + answer
    found = parse(parser, OPENED if opened else PLAIN, output)
    assert found == Parsed(answer.lstrip(), thought.strip())


@given(WORDS, WORDS, st.sampled_from(["qwen3", "deepseek-r1"]), st.data())
def test_a_thought_cut_off_anywhere_has_no_answer(thought: str, answer: str, parser: str, data: st.DataObject) -> None:
    output = OPEN + thought + CLOSE + answer
    end = data.draw(st.integers(len(OPEN), len(OPEN + thought + CLOSE) - 1))
    found = parse(parser, PLAIN, output[:end])
    assert found.cut_off and found.answer == ""
    assert phase(parser, PLAIN, output[:end]) == "thought"


def test_an_answer_is_never_found_in_a_thought_that_says_it() -> None:
    """The fault this guards against: a cut-off thought that contains the right answer must not score."""
    assert parse("qwen3", PLAIN, "<think>The answer is #### 42").answer == ""
    assert parse("none", PLAIN, "<think>The answer is #### 42").answer.endswith("42")

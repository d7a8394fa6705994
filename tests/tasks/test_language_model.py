"""Requests one at a time through the plain model, beside what the batches give; everything that can be too long."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance

from qconvert.errors import UserError
from qconvert_evals.tasks import decoding
from qconvert_evals.tasks.decoding import Row, Sampling, choose, decode
from qconvert_evals.tasks.language_model import LaneLM
from qconvert_evals.tasks.scoring import Span, merge, score
from qconvert_evals.tasks.settings import TaskSettings
from qconvert_evals.tasks.tokenizing import TaskTokenizer
from qconvert_reference.generation import generate
from qconvert_reference.lane import Lane
from tests.tasks.conftest import quiet, write_model

SETTINGS = TaskSettings(("any",))
EXACT = 1e-3  # a sum of at most 64 log-probabilities, each off by twice the 1e-6 of a logit in fp32, times ten


def request(kind: str, *arguments: Any) -> Instance:
    return Instance(kind, {}, arguments, 0, metadata=("any", 0, 1))


def alone(lane: Lane, tokens: list[int], scored: int) -> tuple[float, bool]:
    """The definition: one row, the whole model, fp32 logits."""
    shares = lane.model()(torch.tensor([tokens[:-1]])).logits[0].double().log_softmax(-1)[-scored:]
    wanted = torch.tensor(tokens[-scored:])
    return float(shares.gather(1, wanted[:, None]).sum()), bool((shares.argmax(-1) == wanted).all())


ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5).map(tuple), min_size=1, max_size=12)


@given(ROWS)
def test_merged_rows_hold_every_request_and_nothing_twice(fed: list[tuple[int, ...]]) -> None:
    rows, row_of = merge(fed)
    assert all(rows[row][: len(one)] == one for one, row in zip(fed, row_of, strict=True))
    assert not any(a != b and rows[b][: len(rows[a])] == rows[a] for a in range(len(rows)) for b in range(len(rows)))
    assert set(rows) <= set(fed) and len(set(rows)) == len(rows)


def test_scores_of_a_batch_are_those_of_each_request_alone(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    spans = []
    for length in (2, 3, 9, 20, 20, 41):
        tokens = torch.randint(0, 256, (length,), generator=generator).tolist()
        spans += [Span(tuple(tokens), scored) for scored in {1, length // 2, length - 1}]
        spans += [Span((*tokens[:-1], other), 1) for other in (5, 6)]
    best = int(lane.model()(torch.tensor([[7, 8]])).logits[0, -1].argmax())
    spans += [Span((7, 8, best), 1), Span((7, 8, best), 1)]
    for batch, held in ((4096, 1 << 18), (32, 64)):
        monkeypatch.setattr("qconvert_evals.tasks.scoring.BATCH_TOKENS", batch)
        monkeypatch.setattr("qconvert_evals.tasks.scoring.HELD_TOKENS", held)
        found = score(lane, spans, quiet)
        for one, span in zip(found, spans, strict=True):
            value, greedy = alone(lane, list(span.tokens), span.scored)
            assert abs(one.log_likelihood - value) < EXACT and one.greedy == greedy
    assert found[-1].greedy


def test_progress_counts_to_its_total(lane: Lane) -> None:
    counts: list[int] = []

    def begin(stage: str, total: int) -> Callable[[], None]:
        counts.append(total)
        return lambda: counts.append(1)

    score(lane, [Span((1, 2, 3), 1), Span((4, 5), 1)], begin)
    assert counts[0] == len(counts) - 1 == 4


def test_what_is_too_long_loses_its_beginning_and_is_counted(lane: Lane) -> None:
    model = LaneLM(lane, SETTINGS, quiet)
    text = "".join(chr(97 + number % 26) for number in range(100))
    ids = model.tok_encode(text)
    assert len(ids) == 100 and model.max_length == 64
    (found,) = model.loglikelihood([request("loglikelihood", text[:90], text[90:])])
    assert found[0] == pytest.approx(alone(lane, ids[-65:], 10)[0], abs=EXACT) and model.cut == 1
    with pytest.raises(UserError, match="cannot be scored"):
        model.loglikelihood([request("loglikelihood", "a", text)])
    with pytest.raises(UserError, match="cannot be scored"):
        model.loglikelihood([request("loglikelihood", "a", "")])
    settings = {"until": [], "max_gen_toks": 4}
    (answer,) = model.generate_until([request("generate_until", text, settings)])
    assert answer == model.text.visible(generate(lane.model(), ids[-60:], 4)) and model.cut == 2
    with pytest.raises(UserError, match="as long as the model's context"):
        model.generate_until([request("generate_until", "a", {"until": [], "max_gen_toks": 64})])


def test_rolling_windows_predict_every_token_once(lane: Lane) -> None:
    model = LaneLM(lane, SETTINGS, quiet)
    text = "".join(chr(97 + number * number % 26) for number in range(150))
    ids = [model.prefix_token_id, *model.tok_encode(text)]
    windows = [(ids[:65], 64), (ids[64:129], 64), (ids[86:151], 22)]
    (found,) = model.loglikelihood_rolling([request("loglikelihood_rolling", text)])
    assert found == pytest.approx(sum(alone(lane, part, scored)[0] for part, scored in windows), abs=3 * EXACT)


def test_an_empty_context_is_the_prefix_token(lane: Lane) -> None:
    model = LaneLM(lane, SETTINGS, quiet)
    (found,) = model.loglikelihood([request("loglikelihood", "", "ab")])
    assert found[0] == pytest.approx(alone(lane, [257, *model.tok_encode("ab")], 2)[0], abs=EXACT)


def test_outputs_of_a_batch_are_those_of_each_prompt_alone(lane: Lane, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "SPREAD", 6)
    model, generator = lane.model(), torch.Generator().manual_seed(5)
    lengths = (3, 4, 9, 9, 12, 15, 20)
    prompts = [torch.randint(0, 256, (length,), generator=generator).tolist() for length in lengths]
    wanted = [generate(model, prompt, 3 + number) for number, prompt in enumerate(prompts)]
    rows = [Row(prompt, 3 + number, lambda output: False) for number, prompt in enumerate(prompts)]
    done: list[int] = []
    decode(model, rows, lambda: done.append(1))
    assert [row.output for row in rows] == wanted and len(done) == len(rows)
    sampled = [[Row(prompt, 4, lambda output: False, Sampling(1.0), seed) for seed, prompt in enumerate(prompts)]]
    sampled += [list(reversed([Row(row.prompt, 4, row.done, row.sampling, row.seed) for row in sampled[0]]))]
    for batch in sampled:
        decode(model, batch, lambda: None)
    assert [row.output for row in sampled[0]] == [row.output for row in reversed(sampled[1])]
    assert [row.output for row in sampled[0]] != [one[:4] for one in wanted]


@given(
    st.lists(st.floats(-4, 4), min_size=2, max_size=8), st.floats(0, 0.999999), st.integers(0, 8), st.floats(0.05, 1)
)
def test_sampling_stays_within_its_limits(logits: list[float], chance: float, top_k: int, top_p: float) -> None:
    row = torch.tensor(logits)
    token = choose(row, Sampling(0.7, top_p, top_k), torch.tensor(chance, dtype=torch.float64))
    shares = (row.double() / 0.7).softmax(-1)
    larger = shares[shares > shares[token]]
    assert not top_k or len(larger) < top_k
    kept = shares.sort(descending=True).values[: top_k or None]
    assert float(larger.sum()) < top_p * float(kept.sum()) + 1e-12


def test_sampling_follows_the_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0])
    grid = (torch.arange(3000, dtype=torch.float64) + 0.5) / 3000
    counts = torch.bincount(torch.tensor([choose(logits, Sampling(1.0), one) for one in grid]), minlength=3) / 3000
    torch.testing.assert_close(counts, logits.softmax(-1), atol=1e-3, rtol=0)


class Scripted:
    """A lane that writes a given text, whatever the prompt."""

    def __init__(self, tiny: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.script = TaskTokenizer(tiny).encode(text)

        def write(model: Any, rows: list[Row], tick: Callable[[], None]) -> None:
            for row in rows:
                for token in self.script:
                    row.output.append(token)
                    if len(row.output) >= row.longest or row.done(row.output):
                        break

        monkeypatch.setattr("qconvert_evals.tasks.language_model.decode", write)


ANSWERS = [
    # parser, prompt, what the model writes, stops, longest -> answer, tokens of the thought, cut off
    ("none", "q", "one\n\ntwo", ["\n\n"], 50, "one", None, False),
    ("none", "q", "one</s>two", ["x"], 50, "one", None, False),
    ("none", "q", "onetwothree", ["two", "ne"], 50, "o", None, False),
    ("none", "q", "<s>one", ["x"], 50, "one", None, False),
    ("none", "q", "one two", [""], 3, "one", None, False),
    ("qwen3", "q<think>\n", "a\n\nb\n</think>\n\nfour\n\nmore", ["\n\n"], 50, "four", 4, False),
    ("qwen3", "q", "<think>a\n\nb</think>\n\nfour\n\nmore", ["\n\n"], 50, "four", 4, False),
    ("qwen3", "q", "<think>the answer is 4\n\nI think", ["\n\n"], 12, "", 10, True),
    ("qwen3", "q", "four\n\nmore", ["\n\n"], 50, "four", None, False),
    ("deepseek-r1", "q", "hm. #### 5</s>", ["."], 50, "", 10, True),
    ("deepseek-r1", "q", "hm. </think>4. 5", ["."], 50, "4", 3, False),
]


@pytest.mark.parametrize(("parser", "prompt", "text", "stops", "longest", "answer", "thought", "cut_off"), ANSWERS)
def test_answers_end_at_stops_and_thoughts_do_not(
    parser: str, prompt: str, text: str, stops: list[str], longest: int, answer: str, thought: int | None,
    cut_off: bool, lane: Lane, tiny: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    Scripted(tiny, text, monkeypatch)
    model = LaneLM(lane, TaskSettings(("any",), reasoning_parser=parser, max_gen_toks=longest), quiet)
    assert model.generate_until([request("generate_until", prompt, {"until": stops})]) == [answer]
    assert [(one.tokens, one.cut_off) for one in model.thoughts] == (
        [(thought, cut_off)] if thought is not None else []
    )


def test_decoding_stops_early_at_a_stop(lane: Lane, tiny: Path) -> None:
    written: list[int] = []
    model = LaneLM(lane, SETTINGS, quiet)
    row, _ = model._prepare(request("generate_until", "q", {"until": ["\n\n"], "max_gen_toks": 60}), Counter())
    for token in TaskTokenizer(tiny).encode("one\n\nxxx"):
        written.append(token)
        if row.done(written):
            break
    assert len(written) == 5


def test_settings_that_are_not_supported_are_named(lane: Lane) -> None:
    with pytest.raises(UserError, match="sets num_beams"):
        LaneLM(lane, SETTINGS, quiet).generate_until([request("generate_until", "q", {"until": [], "num_beams": 2})])


def test_special_tokens_stand_once_as_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write_model(tmp_path / "bos", bos=True)
    ours, theirs = TaskTokenizer(folder), transformers.AutoTokenizer.from_pretrained(str(folder))
    assert (ours.prefix, ours.ends) == (theirs.bos_token_id, {theirs.eos_token_id}) == (256, {257})
    assert ours.encode_special("ab") == theirs.encode("ab") == [256, *ours.encode("ab")]
    assert ours.encode_special("<s>ab") == theirs.encode("<s>ab", add_special_tokens=False) == ours.encode_special("ab")
    assert ours.encode_special("ab", False) == theirs.encode("ab", add_special_tokens=False)
    assert ours.visible([256, *ours.encode("a<think>b</s>")]) == "a<think>b"


def test_a_tokenizer_file_that_cuts_texts_is_not_obeyed(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "cuts")
    content = json.loads((folder / "tokenizer.json").read_text())
    content["truncation"] = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert len(TaskTokenizer(folder).encode_special("abcdefgh")) == 8

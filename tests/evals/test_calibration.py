"""Statistics of calibration beside those that hooks on transformers' Qwen3-Next collect on the same tokens."""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qconvert.calibration import Request
from qconvert.errors import UserError
from qconvert.formats import open_weights
from qconvert_evals import calibration, inputs
from qconvert_evals.calibration import Text, open_text
from qconvert_evals.corpus import make_corpus
from qconvert_evals.data import Document
from qconvert_reference.lane import Lane
from qconvert_reference.linear import Numerics
from qconvert_reference.recording import record_input, recording
from tests.evals.tiny_pair import some_documents, write_tokenizer
from tests.reference.conftest import witness  # noqa: F401
from tests.tiny import tiny_config, write_tiny_checkpoint

EXPERTS = "mlp.experts."
LINEARS = ("_proj.weight", "in_proj_qkvz.weight", "out_proj.weight")


def text_of(folder: Path, numerics: Numerics, documents: list[Document]) -> Text:
    """By bytes, without a tokenizer file, in sequences of unequal length."""
    lane = Lane.open("calibration", folder, numerics)
    corpus = make_corpus(
        documents, lambda text: list(text.encode()), tokens=600, seq_len=64, vocab_size=lane.config.vocab_size
    )
    return Text(lane, corpus, Request("here", 600, 64))


def hooked(model: Any, sequences: list[list[int]]) -> dict[str, list[Tensor]]:
    """Rows [n, K] that enter each linear of transformers' model, one sequence after the other, without padding."""
    rows: dict[str, list[Tensor]] = defaultdict(list)

    def linear(name: str) -> Callable[..., None]:
        return lambda module, given: rows[name].append(given[0].flatten(0, -2))

    def experts(prefix: str) -> Callable[..., None]:
        def hook(module: Any, given: tuple[Tensor, Tensor, Tensor]) -> None:
            x, chosen = given[0].flatten(0, -2), given[1].flatten(0, -2)
            for expert in range(module.num_experts):
                own = x[(chosen == expert).any(-1)]
                gate, up = torch.nn.functional.linear(own, module.gate_up_proj[expert]).chunk(2, -1)
                for part, entering in (("gate", own), ("up", own), ("down", torch.nn.functional.silu(gate) * up)):
                    rows[f"{prefix}.{expert}.{part}_proj.weight"].append(entering)

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(linear(f"{name}.weight"))
        elif name.endswith("mlp.experts"):
            module.register_forward_pre_hook(experts(name))
    with torch.no_grad():
        for tokens in sequences:
            model(torch.tensor([tokens]))
    return rows


def test_statistics_are_those_of_hooks_on_transformers(
    witness: Callable[..., Any],  # noqa: F811
    tmp_path: Path,
) -> None:
    """fp32; outputs of both agree to 1e-4 (tests/reference), so moments of inputs of size 1 to 10 agree to 1e-3."""
    model = witness(tiny_config(mlp_only_layers=[2]), tmp_path)
    text = text_of(tmp_path, Numerics(torch.float32), some_documents())
    rows = hooked(model, [one.tokens for one in text.corpus.sequences])
    names = [name for name in open_weights(tmp_path).names if name.endswith(LINEARS)]
    walk = text.walk(names, 2, lambda what: None)
    seen = dict.fromkeys(range(4), 0)
    for name in sorted(names, key=lambda name: int(name.split(".")[2])):
        found, expected = walk.inputs(name), torch.cat(rows[name]).double()
        assert found.tokens == len(expected), name
        hessian, importance = found.hessian(), found.importance()
        assert hessian.tokens == importance.tokens == len(expected)
        torch.testing.assert_close(hessian.own, expected.T @ expected / len(expected), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(importance.own, expected.square().mean(0), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(hessian.own.diagonal(), importance.own, rtol=1e-5, atol=0)
        assert (hessian.shared is not None) == (EXPERTS in name)
        if "layers.0.mlp.experts" in name and "up_proj" in name:
            seen[int(name.split(".")[5])] = found.tokens
            everything = torch.cat(rows["model.layers.0.mlp.shared_expert.up_proj.weight"]).double()
            torch.testing.assert_close(
                hessian.shared, everything.T @ everything / len(everything), rtol=1e-3, atol=1e-3
            )
            assert hessian.shared_tokens == len(everything) == text.corpus.tokens
    assert sum(seen.values()) == 2 * text.corpus.tokens  # two experts a token
    assert walk.depth == 4


def test_what_is_shared_of_a_down_projection_has_gone_through_its_own_expert(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "source")
    text = text_of(source, Numerics(), some_documents())
    name = "model.layers.0.mlp.experts.3.down_proj.weight"
    found = text.walk([name], 1, lambda what: None).inputs(name)
    moments = found.importance()
    layer = text.lane.layer(0)
    with torch.no_grad(), recording({"model.layers.0.mlp.gate.weight"}) as record:
        every = []
        for batch in text.corpus.batches:
            layer(text.lane.embed(batch.tokens))
            every.append(record.inputs["model.layers.0.mlp.gate.weight"][batch.mask()])
        hidden = layer.mlp.experts[3].hidden(torch.cat(every))  # type: ignore[union-attr]
    torch.testing.assert_close(moments.shared, hidden.double().square().mean(0))
    assert moments.shared is not None and not torch.allclose(moments.own, moments.shared, rtol=0.01)


def moments_of(source: Path, workers: int, names: list[str]) -> list[Tensor]:
    walk = text_of(source, Numerics(), some_documents()).walk(names, workers, lambda what: None)
    return [part for name in names for part in vars(walk.inputs(name).hessian()).values()]


def test_workers_and_skipped_layers_change_no_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_tiny_checkpoint(tmp_path / "source")
    names = [f"model.layers.{layer}.mlp.experts.{e}.{part}_proj.weight"
             for layer in (0, 2, 3) for e in (0, 3) for part in ("gate", "down")]  # fmt: skip
    names.append("mtp.layers.0.mlp.experts.1.up_proj.weight")
    one, three = moments_of(source, 1, names), moments_of(source, 3, names)
    late = moments_of(source, 2, names[4:])
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(one, three, strict=True))
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(one[16:], late, strict=True))


def test_weights_of_one_input_share_their_statistics_and_layers_are_let_go(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "source")
    expert, attention = "model.layers.0.mlp.experts.1", "model.layers.3.self_attn"
    names = [f"{expert}.{part}_proj.weight" for part in ("gate", "up", "down")]
    names += [f"{attention}.{part}_proj.weight" for part in "qkvo"]
    said: list[str] = []
    walk = text_of(source, Numerics(), some_documents()).walk(names, 1, said.append)
    gate, up, down = (walk.inputs(name) for name in names[:3])
    assert gate is up and gate is not down
    q, k, v, o = (walk.inputs(name) for name in names[3:])
    assert q is k is v and q is not o
    assert [line for line in said if "batches" not in line] == [f"calibration: layer {n} of 4" for n in (1, 2, 3, 4)]
    assert said[1] == f"calibration: layer 1 of 4, 1 of {len(walk.batches)} batches"
    with pytest.raises(UserError, match="cannot be calibrated"):
        walk.inputs(names[0])


def test_the_head_is_fed_with_the_true_next_tokens(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "source")
    name = "mtp.layers.0.mlp.shared_expert.up_proj.weight"
    text = text_of(source, Numerics(), some_documents())
    found = text.walk([name], 2, lambda what: None).inputs(name)
    assert found.tokens == text.corpus.tokens - len(text.corpus.sequences)
    model = text.lane.model()
    assert model.mtp is not None
    rows = []
    with torch.no_grad(), recording({name}) as record:
        for one in text.corpus.sequences:
            tokens = torch.tensor([one.tokens])
            model.mtp(tokens[:, 1:], model(tokens).normed[:, :-1])
            rows.append(record.inputs[name][0].double())
    # Other batches, other sums in BF16: some routes differ. What matters is which tokens entered.
    torch.testing.assert_close(found.importance().own, torch.cat(rows).square().mean(0), rtol=0.05, atol=0.01)


def test_a_checkpoint_without_head_cannot_calibrate_it(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "source", mtp=False)
    walk = text_of(source, Numerics(), some_documents()).walk(["mtp.x"], 1, lambda what: None)
    with pytest.raises(UserError, match=r"mtp\.x cannot be calibrated"):
        walk.inputs("mtp.x")


def test_an_expert_that_no_token_went_to(tmp_path: Path) -> None:
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    own = inputs.Rows(0, 8, inputs._select(x, torch.empty(0, dtype=torch.long)))
    shared = inputs.KeptRows(50, 8, lambda: iter([x]))
    moments = inputs.RowInputs(own, shared).hessian()
    assert moments.tokens == 0 and bool((moments.own == 0).all())
    torch.testing.assert_close(moments.shared, x.double().T @ x.double() / 50)


def test_recordings_do_not_see_other_threads_or_times() -> None:
    record_input("a", torch.ones(1))
    with recording({"a"}) as found:
        record_input("a", torch.ones(1))
        record_input("b", torch.ones(1))
    record_input("a", torch.zeros(1))
    assert list(found.inputs) == ["a"] and float(found.inputs["a"]) == 1


def test_identity_names_the_tokens(tmp_path: Path) -> None:
    source = write_tiny_checkpoint(tmp_path / "source")
    write_tokenizer(source)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": one.text}) + "\n" for one in some_documents()))
    first, again, fewer = (open_text(source, Request(str(tmp_path / "a.jsonl"), n, 64)) for n in (500, 500, 300))
    assert first.identity == again.identity and first.identity["sha256"] != fewer.identity["sha256"]
    assert first.identity["tokens"] == first.corpus.tokens <= 500 and first.identity["seq_len"] == 64
    with pytest.raises(UserError, match="no such file"):
        open_text(source, Request(str(tmp_path / "none.txt")))
    assert calibration.open_text is open_text

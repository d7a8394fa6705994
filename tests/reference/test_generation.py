"""Speculative decoding is lossless: token for token when greedy, in distribution when sampled."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qconvert.schemes import get_scheme
from qconvert_reference.cache import AttentionState, Cache, DeltaState
from qconvert_reference.config import ModelConfig
from qconvert_reference.generation import Sampler, accept, generate, generate_speculative
from qconvert_reference.linear import Numerics
from qconvert_reference.models.qwen3_next import Model
from tests.tiny import tiny_config, tiny_tensors

PROMPT = [5, 17, 200, 3, 3, 90, 41]
HOT = 3.0  # flat enough that every outcome is met
NUMERICS = {
    "fp32": Numerics(torch.float32),
    "bf16": Numerics(torch.bfloat16),
    "bf16 split": Numerics(torch.bfloat16, accumulation="split"),
    "fp8 weights": Numerics(torch.bfloat16),
    "fp8 weights and activations": Numerics(torch.bfloat16, activations="fp8-group128"),
}


def model_with_useful_drafts(numerics: Numerics, quantized: bool) -> Model:
    """Random, but the trunk changes the embedding little and the head mostly copies it: some drafts are right."""
    config = tiny_config()
    tensors = tiny_tensors(config)
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight")):
            tensor.mul_(0.15)
    tensors["model.embed_tokens.weight"].mul_(8)
    tensors["mtp.fc.weight"] = torch.cat((torch.eye(128), 0.4 * torch.eye(128)), 1).bfloat16()
    scheme = get_scheme("fp8-block128")

    def load(name: str) -> Any:
        linear = name.endswith("_proj.weight") or name.endswith("in_proj_qkvz.weight")
        return scheme.quantize(tensors[name]) if quantized and linear else tensors[name]

    return Model(ModelConfig.from_dict(config), load, numerics)


@pytest.mark.parametrize("precision", NUMERICS)
def test_greedy_speculation_equals_plain_decoding(precision: str) -> None:
    model = model_with_useful_drafts(NUMERICS[precision], quantized=precision.startswith("fp8"))
    plain = generate(model, PROMPT, 40)
    for drafts in (1, 2, 4):
        out = generate_speculative(model, PROMPT, 40, draft_tokens=drafts)
        assert out.tokens == plain
        assert len(out.tokens) == 1 + len(out.rounds) + sum(out.accepted)
        assert 0 < out.accepted[0] < out.drafted[0] <= len(out.rounds)  # both branches were taken
        assert all(
            d <= a for d, a in zip(out.drafted[1:], out.accepted, strict=False)
        )  # a position counts only when all before it were accepted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stepwise_equals_single_tokens_bit_for_bit(dtype: torch.dtype, build_model: Callable[..., Any]) -> None:
    """What the equality above rests on: logits and every state, also after taking tokens back."""
    model = build_model(Numerics(dtype))
    one, many = Cache.empty(model.config), Cache.empty(model.config)
    tokens = torch.tensor([[7, 8, 9, 10, 11, 12]])
    with torch.no_grad():
        for cache in (one, many):
            model(torch.tensor([PROMPT]), cache)
        single = torch.cat([model(tokens[:, i : i + 1], one).logits for i in range(3)], 1)
        many.record()
        together = model(tokens, many, stepwise=True).logits
    assert torch.equal(together[:, :3], single)
    many.rollback(len(PROMPT) + 3)
    assert many.length == one.length
    for left, right in zip(one.layers, many.layers, strict=True):
        assert all(
            torch.equal(a, b) and a.stride() == b.stride() for a, b in zip(_parts(left), _parts(right), strict=True)
        )


def _parts(state: AttentionState | DeltaState) -> list[torch.Tensor]:
    parts = (state.keys, state.values) if isinstance(state, AttentionState) else (state.conv, state.recurrent)
    assert parts[0] is not None and parts[1] is not None
    return list(parts)


def test_rollback_without_record_is_a_bug(build_model: Callable[..., Any]) -> None:
    model = build_model()
    cache = Cache.empty(model.config)
    with torch.no_grad():
        model(torch.tensor([PROMPT]), cache)
    with pytest.raises(KeyError, match="nothing was recorded"):
        cache.rollback(3)


def test_rejection_rule_keeps_the_distribution() -> None:
    """Two drafts from q, checked against p: 36 pairs of first and second token, whatever q is."""
    generator = torch.Generator().manual_seed(0)
    sampler = Sampler(1.0, generator)
    p, q = torch.rand(2, 3, 6, dtype=torch.float64, generator=generator).add(0.2).unbind(0)
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    runs, counts, kept_all = 6000, torch.zeros(6, 6, dtype=torch.float64), 0
    for _ in range(runs):
        drafts = [sampler.draw(q[0]), sampler.draw(q[1])]
        kept, following = accept(sampler, drafts, list(q[:2]), list(p))
        first = drafts[0] if kept else following
        second = drafts[1] if kept == 2 else following if kept == 1 else sampler.draw(p[1])
        counts[first, second] += 1
        kept_all += kept == 2
    expected = runs * p[0][:, None] * p[1]
    assert expected.min() > 5  # the usual condition of the test
    assert 0.2 * runs < kept_all < 0.9 * runs
    assert ((counts - expected) ** 2 / expected).sum() < 66.6  # chi-square, 35 degrees of freedom, p = 0.001


@pytest.mark.slow
def test_sampled_speculation_has_the_distribution_of_plain_sampling() -> None:
    """The whole loop: three tokens over a vocabulary of three, exact probabilities from the trunk."""
    config = tiny_config(vocab_size=3, num_hidden_layers=2, full_attention_interval=2, hidden_size=32, num_experts=2,
                         moe_intermediate_size=16, shared_expert_intermediate_size=16)  # fmt: skip
    model = Model(ModelConfig.from_dict(config), tiny_tensors(config, seed=1).__getitem__, Numerics(torch.float32))
    runs, refused = 500, 0
    expected, counts = runs * _outcomes(model, [1, 2], 3), torch.zeros(27)
    assert expected.min() > 5
    generator = torch.Generator().manual_seed(0)
    for _ in range(runs):
        out = generate_speculative(model, [1, 2], 3, draft_tokens=2, temperature=HOT, generator=generator)
        a, b, c = out.tokens
        counts[9 * a + 3 * b + c] += 1
        refused += sum(out.drafted) - sum(out.accepted)
    assert refused > 40  # the resampling branch is exercised
    assert ((counts - expected) ** 2 / expected).sum() < 54.1  # chi-square, 26 degrees of freedom, p = 0.001


def _outcomes(model: Model, prompt: list[int], length: int) -> torch.Tensor:
    """Probability of each continuation, by the full forward."""
    continuations = torch.cartesian_prod(*[torch.arange(3)] * length)  # [27, 3]
    sequences = torch.cat((torch.tensor([prompt]).expand(len(continuations), -1), continuations), 1)
    with torch.no_grad():
        logp = (model(sequences).logits / HOT).log_softmax(-1)[:, len(prompt) - 1 : -1]
    return logp.gather(-1, continuations[..., None]).squeeze(-1).sum(-1).exp()


def test_plain_sampling_follows_the_temperature(build_model: Callable[..., Any]) -> None:
    model = build_model()
    cold = [generate(model, PROMPT, 5, temperature=1e-4, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    assert cold[0] == cold[1] == generate(model, PROMPT, 5)
    hot = {
        tuple(generate(model, PROMPT, 5, temperature=2.0, generator=torch.Generator().manual_seed(i))) for i in range(4)
    }
    assert len(hot) == 4

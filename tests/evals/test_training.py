"""The recipe of the small model: generated texts are right, held-out texts are kept apart, and training's shortcuts
compute the same.
"""

import math
import random
import re

import pytest
import torch
from torch import Tensor, nn

from qconvert_reference.config import ModelConfig
from qconvert_reference.linear import Numerics
from qconvert_reference.models.qwen3_next import Model
from qconvert_reference.moe import SparseMoe
from tests.tiny import tiny_config, tiny_tensors
from training.data import HELD_OUT_SEEDS, WINDOW, HeldOut, is_held_out, separate
from training.experts import run_experts
from training.generated import math_document, recall_document
from training.model import losses
from training.optimizer import learning_rate, orthogonalise

TERM = r"-?\d+(?: [-+*] \d+)*"
# Not the right end of a division, whose remainder is not written out.
EQUATION = re.compile(rf"(?<!/ )(?<!\d)({TERM}) = ({TERM})")


def _value(term: str) -> int:
    """Products before sums; a sign stands between spaces."""
    parts = re.split(r" ([-+]) ", term)
    factors = [math.prod(map(int, part.split(" * "))) for part in parts[::2]]
    return factors[0] + sum(f if sign == "+" else -f for sign, f in zip(parts[1::2], factors[1:], strict=True))


def test_every_equation_of_the_generated_arithmetic_holds() -> None:
    found = [m for seed in range(20) for m in EQUATION.finditer(math_document(seed))]
    wrong = [m.group() for m in found if _value(m[1]) != _value(m[2])]
    assert len(found) > 400 and not wrong


def test_generated_documents_follow_from_their_seed() -> None:
    for make in (math_document, recall_document):
        assert make(1) == make(1) != make(2)
        assert make(1) != make(HELD_OUT_SEEDS + 1)


def test_training_text_loses_every_line_it_shares_with_a_held_out_document() -> None:
    letters = random.Random(0)
    held = "".join(letters.choice("abcdefgh ") for _ in range(400))
    own = "".join(letters.choice("qrstuvwx ") for _ in range(400))
    text = f"{own}\nbefore\n    {held[50 : 50 + WINDOW + 20]}\nafter\n{held[: WINDOW - 20]}"
    corpus = separate({"code": [text]}, [HeldOut("one", "code", held)])
    kept = corpus.train["code"][0]
    assert held[60:150] not in kept
    assert own in kept and held[: WINDOW - 20] in kept  # a shorter run than the window is no overlap
    assert corpus.facts["dropped_lines"] >= 1 and corpus.facts["shared_windows_left"] == 0


def test_a_window_split_over_lines_and_indented_otherwise_is_found() -> None:
    held = " ".join(f"word{n}" for n in range(60))
    text = "keep me\n" + held[:200].replace(" ", "\n\t") + "\nkeep me too"
    kept = separate({"code": [text]}, [HeldOut("one", "code", held)]).train["code"][0]
    assert kept.split() == ["keep", "me", "keep", "me", "too"]


def test_held_out_is_decided_by_name_and_seed() -> None:
    names = [f"file{n}.py" for n in range(2000)]
    first = [is_held_out(name, 0) for name in names]
    assert first == [is_held_out(name, 0) for name in names] != [is_held_out(name, 1) for name in names]
    assert 0.09 < sum(first) / len(first) < 0.15  # 12% of 2000 draws: four standard deviations are 2.9%


def _gradients(seed: int) -> tuple[float, dict[str, Tensor]]:
    config = tiny_config()
    weights = {name: nn.Parameter(tensor.float()) for name, tensor in tiny_tensors(config, seed).items()}
    model = Model(ModelConfig.from_dict(config), weights.__getitem__, Numerics(torch.float32))
    rows = torch.randint(0, config["vocab_size"], (2, 43), generator=torch.Generator().manual_seed(seed))
    loss, _ = losses(model, rows, draft_steps=2)
    loss.backward()
    return loss.item(), {name: p.grad for name, p in weights.items() if p.grad is not None}


def test_batched_experts_train_like_the_reference_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, gradients = _gradients(3)
    monkeypatch.setattr(SparseMoe, "_run_experts", run_experts)
    batched_loss, batched = _gradients(3)
    # Sums of a few hundred fp32 terms in another order err by some 1e-6, and five layers let that grow.
    assert abs(batched_loss - loss) < 1e-5 * loss
    for name, gradient in gradients.items():
        assert torch.linalg.norm(batched[name] - gradient) <= 1e-3 * torch.linalg.norm(gradient) + 1e-7, name


def test_the_loss_reaches_every_parameter() -> None:
    _, gradients = _gradients(4)
    assert set(gradients) == set(tiny_tensors(tiny_config()))


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    matrices = torch.randn(3, 64, 128, generator=torch.Generator().manual_seed(0))
    for given in (matrices, matrices.transpose(1, 2)):
        values = torch.linalg.svdvals(orthogonalise(given).float())
        # The published polynomial settles between 0.68 and 1.13; BF16 adds a little.
        assert values.min() > 0.6 and values.max() < 1.3


def test_learning_rate_rises_stays_and_falls_to_zero() -> None:
    rates = [learning_rate(0.0, 9), learning_rate(0.2, 500), learning_rate(0.675, 900), learning_rate(1.0, 999)]
    assert rates == pytest.approx([0.1, 1.0, 0.5, 0.0])

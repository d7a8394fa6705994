"""Along the context: stretches of positions, router agreement by them, and contexts beyond the trained length."""

from pathlib import Path

import numpy as np
import pytest
import torch

from qconvert.errors import UserError
from qconvert_evals.compare import compare
from qconvert_evals.latency import LatencySettings, measure, open_latency_lanes
from qconvert_evals.metrics import router
from qconvert_evals.metrics.found import by_stretch, stretch_name, stretch_of
from qconvert_evals.metrics.router import RouterState, Routes
from qconvert_evals.results import Results
from qconvert_evals.speculation import LiveSettings
from qconvert_reference.config import ModelConfig, RopeConfig, with_yarn
from tests.evals.tiny_pair import some_documents, write_tokenizer
from tests.tiny import tiny_config, write_tiny_checkpoint

LENGTH = 64


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained on 64 tokens."""
    config = tiny_config(max_position_embeddings=LENGTH)
    folder = write_tiny_checkpoint(tmp_path_factory.mktemp("short") / "bf16", config, shards=1)
    write_tokenizer(folder)
    return folder


def run(folder: Path, seq_len: int, yarn: float | None = None) -> Results:
    return compare(
        folder, {"again": folder}, documents=some_documents(1, 300), tokens=600, seq_len=seq_len, draft_tokens=1,
        live=LiveSettings(0), yarn=yarn,
    )  # fmt: skip


def test_stretches_double() -> None:
    positions = np.asarray([0, 1, 127, 128, 255, 256, 511, 512, 8191, 8192])
    assert stretch_of(positions).tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 6, 7]
    names = [stretch_name(number) for number in (0, 1, 2, 7)]
    assert names == ["at=0-127", "at=128-255", "at=256-511", "at=8192-16383"]
    for name, mask in by_stretch(positions):
        first, last = (int(part) for part in name.removeprefix("at=").split("-"))
        assert mask.tolist() == ((positions >= first) & (positions <= last)).tolist()
    assert not list(by_stretch(np.arange(128)))


def test_routers_are_compared_by_position() -> None:
    """Two layers, two documents; behind position 127 the candidate takes other experts, in front of it the same."""
    positions = torch.tensor([0, 127, 128, 300])
    documents = torch.tensor([0, 1, 0, 1])
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).repeat(4, 1)
    base = Routes(logits, torch.tensor([[0, 1]] * 4), torch.full((4, 2), 0.5))
    changed = Routes(logits, torch.tensor([[0, 1], [0, 1], [0, 2], [3, 2]]), torch.full((4, 2), 0.5))
    state = RouterState("fp8", ["a", "b"])
    for layer in ("0", "1"):
        router.update(state, layer, "local", base, changed, documents, positions)
    rows = {(one.name, one.slice): one for one in router.result(state).measurements}
    overlap = {at: rows["router.topk_overlap", f"at={at},feed=local"] for at in ("0-127", "128-255", "256-511")}
    assert [one.value for one in overlap.values()] == [1.0, 0.5, 0.0]
    assert [one.n for one in overlap.values()] == [4, 2, 2]  # tokens times layers
    assert rows["router.topk_overlap", "feed=local"].value == pytest.approx(0.625)
    alone = RouterState("fp8", ["a", "b"])
    router.update(alone, "0", "local", base, changed, documents)
    assert not [at for _, at in {(m.name, m.slice) for m in router.result(alone).measurements} if at.startswith("at=")]


def test_longer_than_the_context_is_refused_with_the_way_out(short: Path) -> None:
    with pytest.raises(UserError, match=r"longer than the model's context(.|\n)*64 tokens(.|\n)*--yarn 4"):
        run(short, 200)
    with pytest.raises(UserError, match="longer than the model's context"):
        measure(open_latency_lanes(short, {}), list(range(100)), LatencySettings((64,), 1, 4, 1))


def test_a_stretched_context_is_measured_beyond_its_length(short: Path) -> None:
    results = run(short, 200, yarn=4.0)
    assert results.tool["yarn"] == 4.0
    far = results.find("router.set_match", "bf16-noise", "at=128-255,feed=local")
    assert far is not None and far.value is not None and far.n > 0
    assert results.find("logits.kl_mean", "again", "at=128-255") is not None
    plain, stretched = (run(short, LENGTH, yarn).find("logits.ppl", "bf16") for yarn in (None, 4.0))
    assert plain is not None and stretched is not None and plain.value != stretched.value


def test_yarn_is_what_config_json_would_say() -> None:
    config = tiny_config(max_position_embeddings=LENGTH)
    said = {**config, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": LENGTH}}
    found, wanted = ModelConfig.from_dict(with_yarn(config, 4.0)), ModelConfig.from_dict(said)
    assert found.rope == wanted.rope and isinstance(found.rope, RopeConfig)
    assert found.max_position_embeddings == 4 * LENGTH
    with pytest.raises(UserError, match="stretched already"):
        with_yarn(said, 2.0)
    with pytest.raises(UserError, match="factor above 1"):
        with_yarn(config, 1.0)

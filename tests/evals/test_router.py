"""Router agreement on decisions small enough to count by hand."""

import math

import pytest
import torch

from qconvert_evals.metrics import router
from qconvert_evals.metrics.router import Routes
from qconvert_reference.moe import route


def routes(logits: list[list[float]], k: int = 2) -> Routes:
    return Routes(*route(torch.tensor(logits, dtype=torch.float32), k, True))


BASE = routes([[4, 3, 1, 0], [4, 3, 1, 0], [0, 1, 2, 3]])
# Token 0: same; token 1: expert 1 replaced by 2; token 2: the two largest swap places.
CANDIDATE = routes([[4, 3, 1, 0], [4, 1, 3, 0], [0, 1, 3, 2]])
DOCUMENTS = torch.tensor([0, 1, 1])


def measured(state: router.RouterState) -> dict[tuple[str, str], float | None]:
    return {(row.name, row.slice): row.value for row in router.result(state).measurements}


@pytest.fixture
def state() -> router.RouterState:
    made = router.RouterState("fp8", ["code", "prose"])
    router.update(made, "0", "local", BASE, CANDIDATE, DOCUMENTS)
    return made


def test_by_hand(state: router.RouterState) -> None:
    rows = measured(state)
    at = "layer=0,feed=local"
    e = math.exp(1)
    assert rows["router.set_match", at] == pytest.approx(2 / 3)
    assert rows["router.topk_overlap", at] == pytest.approx((1 + 0.5 + 1) / 3)
    assert rows["router.jaccard", at] == pytest.approx((1 + 1 / 3 + 1) / 3)
    assert rows["router.top1_match", at] == pytest.approx(2 / 3)
    assert rows["router.shared_weight", at] == pytest.approx((1 + e / (1 + e) + 1) / 3)
    assert rows["router.margin_flipped", at] == pytest.approx(2.0)
    assert rows["router.margin_kept", at] == pytest.approx((2.0 + 1.0) / 2)
    # Base chooses experts 0,1 twice and 2,3 once; the candidate's token 1 moves one choice of six from expert 1 to 2.
    assert rows["router.load_distance", at] == pytest.approx(1 / 6)
    p = torch.tensor([4.0, 3, 1, 0], dtype=torch.float64).softmax(-1)
    one = float(p[1] * 2 - p[2] * 2)
    last = torch.tensor([0.0, 1, 2, 3], dtype=torch.float64).softmax(-1)
    two = float(-last[2] + last[3])
    assert rows["router.kl", at] == pytest.approx((one + two) / 3)


def test_pieces_and_domains(state: router.RouterState) -> None:
    pieces = router.RouterState("fp8", ["code", "prose"])
    for row in range(3):
        part = (Routes(*(value[row : row + 1] for value in one)) for one in (BASE, CANDIDATE))
        router.update(pieces, "0", "local", *part, DOCUMENTS[row : row + 1])
    whole = measured(state)
    assert measured(pieces) == pytest.approx(whole)
    assert whole["router.set_match", "domain=code,feed=local"] == 1
    assert whole["router.set_match", "domain=prose,feed=local"] == 0.5


def test_overall_pools_layers_of_one_feed(state: router.RouterState) -> None:
    router.update(state, "1", "local", BASE, BASE, DOCUMENTS)
    router.update(state, "1", "free", BASE, CANDIDATE, DOCUMENTS)
    rows = measured(state)
    assert rows["router.set_match", "feed=local"] == pytest.approx(5 / 6)
    assert rows["router.load_distance", "feed=local"] == pytest.approx(1 / 12)
    assert rows["router.set_match", "feed=free"] == pytest.approx(2 / 3)


def test_nothing_flipped_has_no_margin() -> None:
    made = router.RouterState("fp8", ["code", "prose"])
    router.update(made, "0", "local", BASE, BASE, DOCUMENTS)
    found = router.result(made)
    rows = {(row.name, row.slice): row.value for row in found.measurements}
    assert rows["router.margin_flipped", "feed=local"] is None
    assert any(one.name == "router.margin_flipped" and "no token changed" in one.why for one in found.missing)
    assert rows["router.set_match", "feed=local"] == 1 and rows["router.kl", "feed=local"] == 0


def test_all_experts_chosen_has_zero_margin() -> None:
    made = router.RouterState("fp8", ["code", "prose"])
    everything = routes([[1, 0], [0, 1], [0, 1]], k=2)
    router.update(made, "0", "free", everything, everything, DOCUMENTS)
    assert measured(made)["router.margin_kept", "feed=free"] == 0


def test_ties_are_counted_in_every_lane_by_layer_and_together() -> None:
    """Rank 2 and 3 equal: token 0 of the base; tokens 0 and 1 of the candidate. Equal logits elsewhere are no tie."""
    base = routes([[4, 3, 3, 0], [4, 3, 1, 0], [5, 5, 1, 1]])
    candidate = routes([[4, 3, 3, 0], [4, 3, 3, 3], [5, 5, 1, 1]])
    assert base.experts.tolist() == [[0, 1], [0, 1], [0, 1]]
    made = router.RouterState("fp8", ["code", "prose"])
    for layer in ("0", "mtp"):
        for feed in ("local", "free"):
            router.update(made, layer, feed, base, candidate, DOCUMENTS)
    rows = measured(made)
    bases = {(row.name, row.slice): row.value for row in router.base_result(made, "bf16").measurements}
    assert {name for name, _ in bases} == {"router.tie_rate"}
    for at in ("layer=0,feed=local", "layer=mtp,feed=free", "feed=local", "feed=free"):
        assert rows["router.tie_rate", at] == pytest.approx(2 / 3)
        assert bases["router.tie_rate", at] == pytest.approx(1 / 3)
    assert bases["router.tie_rate", "domain=code,feed=local"] == 1  # document 0 is token 0
    assert rows["router.margin_kept", "feed=local"] == pytest.approx((0 + 2 + 4) / 3)


def test_where_all_experts_are_chosen_nothing_ties() -> None:
    made = router.RouterState("fp8", ["code", "prose"])
    everything = routes([[1, 1], [1, 1], [0, 1]], k=2)
    router.update(made, "0", "free", everything, everything, DOCUMENTS)
    assert measured(made)["router.tie_rate", "feed=free"] == 0

"""Statistics of next-token distributions against scipy, and the streaming property."""

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch

from qconvert_evals.metrics import logits

DOMAINS = ["code", "prose", "code", "math"]


def run(base: torch.Tensor, candidate: torch.Tensor, targets: torch.Tensor, documents: torch.Tensor, pieces: int = 1):
    state = logits.LogitsState("fp8", DOMAINS)
    for rows in torch.arange(len(base)).chunk(pieces):
        pair = (logits.log_probabilities(one[rows]) for one in (base, candidate))
        logits.update(state, *pair, targets[rows], documents[rows], rows)
    return state


@pytest.fixture
def sample() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    base = 3 * torch.randn(240, 97, generator=generator, dtype=torch.float64)
    candidate = base + 0.3 * torch.randn(240, 97, generator=generator, dtype=torch.float64)
    targets = torch.randint(97, (240,), generator=generator)
    return base, candidate, targets, torch.arange(240) // 60


def value(found, name: str, at: str = "all") -> float:
    (row,) = [one for one in found.measurements if (one.name, one.slice) == (name, at)]
    assert row.value is not None
    return row.value


def test_everything_against_scipy(sample) -> None:
    base, candidate, targets, documents = sample
    found = logits.result(run(*sample))
    p, q = (scipy.special.softmax(one.numpy(), axis=1) for one in (base, candidate))
    kl = np.array([scipy.stats.entropy(a, b) for a, b in zip(p, q, strict=True)])
    at = (np.arange(240), targets.numpy())
    nll_p, nll_q, dp = -np.log(p[at]), -np.log(q[at]), q[at] - p[at]
    expected = {
        "logits.kl_mean": kl.mean(),
        "logits.ppl": np.exp(nll_q.mean()),
        "logits.ppl_ratio": np.exp(nll_q.mean()) / np.exp(nll_p.mean()),
        "logits.ln_ppl_ratio": nll_q.mean() - nll_p.mean(),
        "logits.ppl_difference": np.exp(nll_q.mean()) - np.exp(nll_p.mean()),
        "logits.ln_ppl_correlation": scipy.stats.pearsonr(nll_p, nll_q).statistic,
        "logits.dp_mean": dp.mean(),
        "logits.dp_rms": np.sqrt((dp**2).mean()),
        "logits.top1_agreement": (p.argmax(1) == q.argmax(1)).mean(),
        "logits.top5_overlap": np.mean(
            [len(set(np.argsort(-a)[:5]) & set(np.argsort(-b)[:5])) / 5 for a, b in zip(p, q, strict=True)]
        ),
        "logits.sampled_overlap": np.minimum(p, q).sum(1).mean(),
    }
    expected |= {f"logits.{name}": np.quantile(kl, level) for name, level in logits.KL_LEVELS.items()}
    expected |= {f"logits.{name}": np.quantile(dp, level) for name, level in logits.DP_LEVELS.items()}
    for name, reference in expected.items():
        assert value(found, name) == pytest.approx(reference, abs=1e-9), name
    code = np.isin(documents.numpy(), [0, 2])
    assert value(found, "logits.kl_mean", "domain=code") == pytest.approx(kl[code].mean(), abs=1e-9)
    assert {one.slice for one in found.measurements} == {"all", "domain=code", "domain=math", "domain=prose"}
    assert value(logits.base_result(run(*sample), "bf16"), "logits.ppl") == pytest.approx(
        np.exp(nll_p.mean()), abs=1e-9
    )


def test_pieces_equal_one_shot(sample) -> None:
    assert logits.result(run(*sample, pieces=7)) == logits.result(run(*sample))


def test_a_lane_against_itself_is_exactly_zero(sample) -> None:
    base, _, targets, documents = sample
    found = logits.result(run(base.float(), base.float(), targets, documents))
    for name in ("kl_mean", "kl_max", "kl_min", "ln_ppl_ratio", "ppl_difference", "dp_rms"):
        assert value(found, f"logits.{name}") == 0.0
    assert value(found, "logits.top1_agreement") == 1.0


def test_intervals_hold_the_value_and_one_document_has_none(sample) -> None:
    for row in logits.result(run(*sample)).measurements:
        if row.name.removeprefix("logits.") in logits.KL_LEVELS | logits.DP_LEVELS:
            assert row.ci_low is None and row.ci_high is None  # too few documents for quantiles
        elif row.slice == "all":
            assert row.ci_low is not None and row.ci_high is not None and row.value is not None
            assert row.ci_low - 1e-12 <= row.value <= row.ci_high + 1e-12, row.name
        if row.slice == "domain=math" and row.name == "logits.kl_mean":
            assert row.ci_low is None


def test_not_a_number_is_missing_and_counted(sample) -> None:
    base, candidate, targets, documents = sample
    candidate = candidate.clone()
    candidate[70, 3] = torch.nan  # document 1, the only one of domain prose
    found = logits.result(run(base, candidate, targets, documents))
    assert value(found, "logits.nonfinite_tokens") == 1
    rows = {(row.name, row.slice): row.value for row in found.measurements}
    assert rows["logits.kl_mean", "all"] is None and rows["logits.kl_mean", "domain=prose"] is None
    assert rows["logits.kl_mean", "domain=code"] is not None
    whys = [one.why for one in found.missing if (one.name, one.slice) == ("logits.kl_mean", "all")]
    assert whys == ["1 of 240 tokens have no finite probabilities"]
    assert logits.worst(run(base, candidate, targets, documents), 1)[0]["place"] == 70


def test_figures(sample) -> None:
    state = run(*sample)
    histogram = logits.histogram(state)
    assert sum(histogram["counts"]) == 240 and len(histogram["edges"]) == len(histogram["counts"]) + 1
    rows = logits.worst(state, 5)
    kl = state.table.numbers("kl")
    assert [row["place"] for row in rows] == np.argsort(-kl)[:5].tolist()
    assert rows[0]["base_top"] == int(sample[0][rows[0]["place"]].argmax())
    buckets = logits.by_position(state, np.arange(240) % 60)
    assert [(one["first"], one["last"]) for one in buckets[:4]] == [(0, 0), (1, 1), (2, 3), (4, 7)]
    assert sum(one["n"] for one in buckets) == 240


def test_by_position_each_stretch_is_the_mean_of_its_own_tokens() -> None:
    generator = torch.Generator().manual_seed(3)
    base = torch.randn(400, 11, generator=generator).double()
    candidate = base + 0.1 * torch.randn(400, 11, generator=generator).double()
    documents = torch.arange(400) // 200
    state = run(base, candidate, torch.zeros(400, dtype=torch.long), documents)
    positions = np.arange(400) % 200
    found = {(row.name, row.slice): row for row in logits.result(state, positions).measurements}
    kl = state.table.numbers("kl")
    for at, mask in (("at=0-127", positions < 128), ("at=128-255", positions >= 128)):
        row = found["logits.kl_mean", at]
        assert row.value == pytest.approx(kl[mask].mean()) and row.n == mask.sum() and row.ci_low is not None
        assert ("logits.top1_agreement", at) in found and ("logits.ppl_ratio", at) in found


def test_short_sequences_have_no_stretches(sample: tuple[torch.Tensor, ...]) -> None:
    state = run(*sample)
    short = logits.result(state, np.zeros(len(state.table), dtype=np.int64))
    assert not [row for row in short.measurements if "at=" in row.slice]


def test_of_equal_logits_the_lower_number_counts() -> None:
    generator = torch.Generator().manual_seed(5)
    coarse = torch.randint(0, 4, (300, 40), generator=generator).double()
    wanted = np.argsort(-coarse.numpy(), axis=1, kind="stable")[:, :5]
    assert logits.top_tokens(coarse, 5).sort(-1).values.tolist() == np.sort(wanted, axis=1).tolist()
    assert not torch.equal(coarse.topk(5).indices.sort(-1).values, torch.from_numpy(np.sort(wanted, axis=1)))
    other, targets = coarse.clone(), torch.zeros(300, dtype=torch.long)
    other[:, 39] -= 1  # the last number wins no tie, so the first choice changes only where it alone was the best
    alone = (coarse.argmax(-1) == 39).double().mean()
    changed = 1 - value(logits.result(run(coarse, other, targets, torch.arange(300) // 100)), "logits.top1_agreement")
    assert changed == pytest.approx(float(alone)) and 0 <= alone < 0.1

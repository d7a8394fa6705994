"""A whole comparison beside scipy: the fp32 logits of its lanes are saved on their way, and every statistic of them is
computed once more by scipy and numpy in float64.

Which token follows which logits is read from the corpus, sequence by sequence, and not from the comparison's masks.
A log-probability of about 6 is rounded by 1e-15 in float64; sums weighed by probabilities and means over a thousand
positions stay below 1e-12. Sums in fp32 would not come within 1e-9 of the value, as the last test shows.
"""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special
import torch

from qconvert_evals import predictions
from qconvert_evals.compare import compare
from qconvert_evals.corpus import Tokenizer, make_corpus
from qconvert_evals.data import Document
from qconvert_evals.metrics import logits as logits_metric
from qconvert_evals.results import Results
from qconvert_evals.speculation import LiveSettings
from qconvert_reference.lane import Lane
from tests.evals.tiny_pair import some_documents, write_pair

Array = npt.NDArray[np.float64]
EXACT = {"rel": 1e-9, "abs": 1e-12}
TOKENS, SEQ_LEN = 2000, 160
BASE, CANDIDATES = "bf16", ("bf16-noise", "fp8")
PERCENTILES = {
    "max": 100, "p99_9": 99.9, "p99": 99, "p95": 95, "p90": 90, "median": 50, "p10": 10, "p5": 5, "p1": 1,
    "p0_1": 0.1, "min": 0,
}  # fmt: skip


@dataclass
class Saved:
    """What a comparison made, the fp32 logits behind it by lane, and for each of their rows what the text says."""

    results: Results
    logits: dict[str, npt.NDArray[np.float32]]
    following: npt.NDArray[np.int64]
    domains: npt.NDArray[np.str_]
    positions: npt.NDArray[np.int64]


@dataclass
class Recorder:
    """Stands in for `predictions.row_logits`."""

    rows: dict[str, list[torch.Tensor]] = field(default_factory=dict)

    def __call__(self, lane: Lane, normed: torch.Tensor) -> torch.Tensor:
        found = lane.logits(normed[None])[0]
        assert found.dtype == torch.float32
        self.rows.setdefault(lane.name, []).append(found.clone())
        return found


def compared(pair: tuple[Path, Path], documents: list[Document], monkeypatch: pytest.MonkeyPatch) -> Saved:
    recorder = Recorder()
    monkeypatch.setattr(predictions, "row_logits", recorder)
    monkeypatch.setattr(predictions, "ROW_CELLS", 100 * 256)  # so that the positions come in several slices
    base, fp8 = pair
    results = compare(
        base, {"fp8": fp8}, documents=documents, tokens=TOKENS, seq_len=SEQ_LEN, draft_tokens=1, live=LiveSettings(0)
    )
    assert len(recorder.rows[BASE]) > 5
    corpus = make_corpus(documents, Tokenizer(base).encode, tokens=TOKENS, seq_len=SEQ_LEN, vocab_size=256)
    assert results.tool["tokens_sha256"] == corpus.sha256
    following: list[int] = []
    domains: list[str] = []
    positions: list[int] = []
    for batch in corpus.batches:
        for number in batch.numbers.tolist():
            sequence = corpus.sequences[number]
            following += sequence.tokens[1:]
            domains += [documents[sequence.document].domain] * (len(sequence.tokens) - 1)
            positions += range(len(sequence.tokens) - 1)
    logits = {lane: torch.cat(rows).numpy() for lane, rows in recorder.rows.items()}
    return Saved(results, logits, np.asarray(following), np.asarray(domains), np.asarray(positions))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp("scipy"))


@pytest.fixture(scope="module")
def documents() -> list[Document]:
    return some_documents(3, length=250)


@pytest.fixture(scope="module")
def saved(pair: tuple[Path, Path], documents: list[Document]) -> Saved:
    with pytest.MonkeyPatch.context() as monkeypatch:
        return compared(pair, documents, monkeypatch)


def expected(saved: Saved, lane: str, rows: npt.NDArray[np.bool_]) -> dict[str, float]:
    """All statistics of the positions chosen, from logits and following tokens alone."""
    ln_p, ln_q = (scipy.special.log_softmax(saved.logits[one][rows].astype(np.float64), axis=1) for one in (BASE, lane))
    p, q = np.exp(ln_p), np.exp(ln_q)
    at = (np.arange(len(p)), saved.following[rows])
    kl: Array = scipy.special.rel_entr(p, q).sum(axis=1)
    change: Array = q[at] - p[at]
    first = [np.argsort(-one, axis=1, kind="stable")[:, :5] for one in (ln_p, ln_q)]  # of equal ones the lower number
    agree = [len(set(a) & set(b)) / 5 for a, b in zip(*first, strict=True)]
    found = {
        "kl_mean": kl.mean(),
        "ppl": np.exp(-ln_q[at].mean()),
        "ppl_ratio": np.exp(-ln_q[at].mean()) / np.exp(-ln_p[at].mean()),
        "ln_ppl_ratio": ln_p[at].mean() - ln_q[at].mean(),
        "ppl_difference": np.exp(-ln_q[at].mean()) - np.exp(-ln_p[at].mean()),
        "ln_ppl_correlation": np.corrcoef(ln_p[at], ln_q[at])[0, 1],
        "dp_mean": change.mean(),
        "dp_rms": np.linalg.norm(change) / np.sqrt(len(change)),
        "top1_agreement": (ln_p.argmax(axis=1) == ln_q.argmax(axis=1)).mean(),
        "top5_overlap": np.mean(agree),
        "sampled_overlap": 1 - np.abs(p - q).sum(axis=1).mean() / 2,
    }
    found |= {f"kl_{name}": np.percentile(kl, level) for name, level in PERCENTILES.items()}
    found |= {f"dp_{name}": np.percentile(change, level) for name, level in PERCENTILES.items()}
    return {name: float(value) for name, value in found.items()}


def value(results: Results, name: str, lane: str, at: str) -> float:
    row = results.find(f"logits.{name}", lane, at)
    assert row is not None and row.value is not None, (name, lane, at)
    return row.value


@pytest.mark.parametrize("lane", CANDIDATES)
@pytest.mark.parametrize("domain", ["all", "code", "prose"])
def test_every_statistic_of_saved_logits(lane: str, domain: str, saved: Saved) -> None:
    rows = np.full(len(saved.domains), True) if domain == "all" else saved.domains == domain
    at = "all" if domain == "all" else f"domain={domain}"
    wanted = expected(saved, lane, rows)
    assert wanted["kl_mean"] > 1e-7 and (domain != "all" or wanted["top1_agreement"] < 1 or lane == "bf16-noise")
    for name, reference in wanted.items():
        assert value(saved.results, name, lane, at) == pytest.approx(reference, **EXACT), name
    kl_mean = saved.results.find("logits.kl_mean", lane, at)
    assert kl_mean is not None and kl_mean.n == rows.sum()


def test_what_is_left_of_the_measurements_are_other_quantiles(saved: Saved) -> None:
    names = {row.name.removeprefix("logits.") for row in saved.results.measurements if row.name.startswith("logits.")}
    covered = set(expected(saved, "fp8", np.full(len(saved.domains), True)))
    assert names - covered == {"nonfinite_tokens", "dp_p75", "dp_p25"} and covered <= names


def test_by_position(saved: Saved) -> None:
    assert saved.positions.max() >= 128
    for at, rows in (("at=0-127", saved.positions < 128), ("at=128-255", saved.positions >= 128)):
        wanted = expected(saved, "fp8", rows)
        for name in ("kl_mean", "ppl_ratio", "top1_agreement"):
            assert value(saved.results, name, "fp8", at) == pytest.approx(wanted[name], **EXACT), (name, at)


def test_sums_in_fp32_would_not_pass(
    pair: tuple[Path, Path], documents: list[Document], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logits_metric, "log_probabilities", lambda logits: torch.log_softmax(logits.float(), dim=-1))
    spoiled = compared(pair, documents, monkeypatch)
    wanted = expected(spoiled, "fp8", np.full(len(spoiled.domains), True))
    for name in ("kl_mean", "kl_p99", "ln_ppl_ratio"):
        assert value(spoiled.results, name, "fp8", "all") != pytest.approx(wanted[name], **EXACT), name

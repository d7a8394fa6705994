"""Results that are too good: signs that a candidate was compared with itself, or that a verifier accepts everything.

    the candidate's weights differ from BF16's, and                                          status
      every token has exactly the same distribution (largest KL = 0)                         fail
      mean KL, whole interval, under half of what another order of addition makes            inconclusive
      the most likely token never differs, though it does in the lane's noise lane           inconclusive
    no tensor is quantized, and every token has exactly the same distribution                inconclusive
    tensors are quantized, and together they err by exactly 0                                inconclusive
    perplexity, whole interval, below BF16's by more than TOO_MUCH_BETTER                    inconclusive
    acceptance of the first draft exactly 100% over at least ENOUGH drafts                   inconclusive
    acceptance of the first draft, paired, above BF16's by more than TOO_MUCH_ACCEPTED       inconclusive
    a score of a benchmark, whole interval, above BF16's by more than TOO_MUCH_SCORE         inconclusive

A fail only where no honest run can show it (a recipe whose quantized tensors no token ever reaches looks the same, and
was measured as little). The weight error can be 0 in earnest, where the BF16 checkpoint was itself
dequantized from the same grid; the reader is told. These checks need no budget, because no budget allows them.
"""

from __future__ import annotations

from collections.abc import Iterator

from qconvert_evals.results import Measurement, VerdictRow
from qconvert_reports.decision import FAIL, INCONCLUSIVE
from qconvert_reports.judged import interval
from qconvert_reports.labels import show_difference, show_value
from qconvert_reports.record import Record

RULE = "too good"
ITSELF = "too good: was the candidate compared with itself?"
EVERYTHING = "too good: does the verifier accept everything?"
ENOUGH = 1000  # drafts or tokens; fewer can all agree by luck: 0.5% disagreement leaves 1000 alone with p = 0.007
ENOUGH_ANSWERS = 100
TOO_MUCH_BETTER = 0.02  # of BF16's perplexity: 4-bit formats lose 1 to 3%, so a gain of as much is no rounding error
TOO_MUCH_ACCEPTED = 0.05  # gates that are two-sided allow 2% (vLLM #32030); heads differ by tenths of a point
TOO_MUCH_SCORE = 0.03  # of a score: recoveries of 8- and 4-bit formats are published as 97 to 101%


def too_good(record: Record, lane: str) -> list[VerdictRow]:
    """A row for every sign that is there; none for a lane that looks like an honest conversion."""
    found = (_outputs, _weights, _perplexity, _acceptance, _scores)
    return [row for check in found for row in check(record, lane)]


def _outputs(record: Record, lane: str) -> Iterator[VerdictRow]:
    """Weights moved, outputs did not."""
    error = record.value("weights.relative_error", lane)
    if not error:
        return
    worst, mean = record.measured("logits.kl_max", lane), record.measured("logits.kl_mean", lane)
    if worst is not None and worst.value == 0:
        words = f"the weights err by {show_value(error, 'ratio')}, yet no token's distribution moved at all"
        yield _row(FAIL, worst, words, ITSELF)
    elif mean is not None and mean.noise_floor and interval(mean)[1] < mean.noise_floor / 2:
        words = f"{show_value(mean.value, 'nats')} is less than half the noise floor {show_value(mean.noise_floor, '')}"
        yield _row(INCONCLUSIVE, mean, words, ITSELF)
    same = record.measured("logits.top1_agreement", lane)
    if same is not None and same.value == 1 and same.n >= ENOUGH and (same.noise_floor or 1.0) < 1:
        words = f"none of {same.n:,} most likely tokens changed, though they change under the lane's own noise"
        yield _row(INCONCLUSIVE, same, words, ITSELF)


def _weights(record: Record, lane: str) -> Iterator[VerdictRow]:
    error, worst = record.measured("weights.relative_error", lane), record.measured("logits.kl_max", lane)
    count = record.measured("weights.quantized_tensors", lane)
    if count is not None and count.value == 0 and worst is not None and worst.value == 0:
        yield _row(INCONCLUSIVE, count, "no tensor of this lane is quantized, and no token moved", ITSELF)
    if error is not None and error.value == 0 and (record.value("weights.quantized_tensors", lane) or 0) > 0:
        words = "quantized tensors that err by exactly 0: either BF16 was dequantized from this very grid, or it is "
        yield _row(INCONCLUSIVE, error, words + "the candidate", ITSELF)


def _perplexity(record: Record, lane: str) -> Iterator[VerdictRow]:
    ratio = record.measured("logits.ppl_ratio", lane)
    if ratio is not None and ratio.n >= ENOUGH and interval(ratio)[1] < 1 - TOO_MUCH_BETTER:
        words = f"perplexity {show_value(ratio.value, 'ratio')} times BF16's; rounding does not teach a model"
        yield _row(INCONCLUSIVE, ratio, words, ITSELF)


def _acceptance(record: Record, lane: str) -> Iterator[VerdictRow]:
    for name in ("mtp.acceptance_greedy", "mtp.acceptance_live"):
        one = record.measured(name, lane, "position=1")
        if one is not None and one.value == 1 and one.n >= ENOUGH:
            yield _row(INCONCLUSIVE, one, f"all {one.n:,} first drafts were accepted", EVERYTHING)
    change = record.measured("mtp.acceptance_greedy_difference", lane, "position=1")
    if change is not None and change.n >= ENOUGH and interval(change)[0] > TOO_MUCH_ACCEPTED:
        yield _row(INCONCLUSIVE, change, f"{show_difference(change.value, change.unit)} against BF16", EVERYTHING)


def _scores(record: Record, lane: str) -> Iterator[VerdictRow]:
    for one in record.by_lane.get(lane, ()):
        is_score = one.name.startswith("bench.") and one.name.endswith("_difference") and one.unit == "fraction"
        if is_score and one.value is not None and one.n >= ENOUGH_ANSWERS and interval(one)[0] > TOO_MUCH_SCORE:
            yield _row(INCONCLUSIVE, one, f"{show_difference(one.value, one.unit)} against BF16", ITSELF)


def _row(status: str, one: Measurement, words: str, decided: str) -> VerdictRow:
    return VerdictRow(
        status, RULE, one.lane, one.name, one.slice, one.value, (one.ci_low, one.ci_high), "", f"{words}; {decided}",
        decided, one.n,
    )  # fmt: skip

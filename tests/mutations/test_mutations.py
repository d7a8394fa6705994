"""The mutation table's own machinery on a few faults; `make mutations` runs them all."""

from dataclasses import replace
from pathlib import Path

import pytest

from qconvert_evals.results import Results
from tests.mutations.__main__ import row
from tests.mutations.registry import FAULTS, Fault
from tests.mutations.run import Flags, run, wrong

FEW = ("double_a_scale", "change_the_tokenizer", "swap_nibbles", "feed_the_head_the_token_before", "no_chat_template")
HARMLESS = Fault("harmless", "nothing at all", files=lambda folder: None, verify=("bounds",))
TABLE = Path(__file__).parents[2] / "docs" / "mutations.md"


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Flags], Results]:
    faults = [fault for fault in FAULTS if fault.name in FEW]
    return run(tmp_path_factory.mktemp("mutations"), [*faults, HARMLESS], tokens=512)


def test_faults_are_flagged_and_clean_lanes_are_not(outcome: tuple[dict[str, Flags], Results]) -> None:
    assert wrong([fault for fault in FAULTS if fault.name in FEW], *outcome) == []


def test_a_fault_that_nothing_flags_is_reported(outcome: tuple[dict[str, Flags], Results]) -> None:
    assert wrong([HARMLESS], *outcome) == ["harmless: verify does not flag bounds", "harmless: nothing flags it"]


def test_a_flagged_clean_lane_and_a_seeing_blind_spot_are_reported(
    outcome: tuple[dict[str, Flags], Results],
) -> None:
    found, results = outcome
    blind = Fault("double_a_scale", "", blind="nobody looks")
    assert wrong([blind], found, results) == ["double_a_scale: flagged, and listed as unseen"]
    flagged = found | {"clean-fp8": Flags(compare=["logits.kl_mean"])}
    assert [line.split(":")[0] for line in wrong([], flagged, results)] == ["clean-fp8"]
    unsure = found | {"clean-int4": Flags(inconclusive=["logits.kl_mean"]), "clean-fp8": Flags()}
    assert wrong([], unsure, results, conclusive=True) == ["clean-int4: logits.kl_mean inconclusive"]
    gone = replace(results, measurements=[m for m in results.measurements if m.name != "logits.kl_max"])
    assert wrong([], found, gone) == ["bf16-again: logits.kl_max is not measured"]


def test_the_committed_table_lists_every_fault() -> None:
    """And has no row that nothing made; its flags are checked by `make mutations`."""
    rows = [line.split("|")[1].strip() for line in TABLE.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    assert rows[1:-3] == [fault.what for fault in FAULTS]
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 40


def test_rows() -> None:
    assert row("x", Flags(["kept"], ["config"], ["a.b", "c.d"])) == "| x | kept, (config) | a.b, c.d |\n"
    assert row("x", Flags(refused="no")) == "| x | – | refused: no |\n"
    assert row("x", Flags(), "reason") == "| x | – | nothing: reason |\n"

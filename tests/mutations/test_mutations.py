"""The mutation table's own machinery on a few faults; `make mutations` runs them all."""

from dataclasses import replace
from pathlib import Path

import pytest

from qconvert_evals.results import Results
from tests.mutations import __main__ as main_module
from tests.mutations.__main__ import TABLE, more, row, stale, table
from tests.mutations.registry import FAULTS, Fault
from tests.mutations.run import CLEAN, Flags, run, wrong

FEW = ("double_a_scale", "change_the_tokenizer", "swap_nibbles", "feed_the_head_the_token_before", "no_chat_template")
HARMLESS = Fault("harmless", "nothing at all", files=lambda folder: None, verify=("bounds",))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Flags], Results]:
    faults = [fault for fault in FAULTS if fault.name in FEW]
    return run(tmp_path_factory.mktemp("mutations"), [*faults, HARMLESS], tokens=512, clean_tokens=512)


@pytest.mark.slow
def test_faults_are_flagged_and_clean_lanes_are_not(outcome: tuple[dict[str, Flags], Results]) -> None:
    assert wrong([fault for fault in FAULTS if fault.name in FEW], *outcome) == []


@pytest.mark.slow
def test_a_fault_that_nothing_flags_is_reported(outcome: tuple[dict[str, Flags], Results]) -> None:
    assert wrong([HARMLESS], *outcome) == ["harmless: verify does not flag bounds", "harmless: nothing flags it"]


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_clean_lane_or_a_demanded_row_near_its_bound_is_reported(outcome: tuple[dict[str, Flags], Results]) -> None:
    """Within the bound by luck, or beyond it: on another machine it may be otherwise."""
    faults = [Fault("x", "", verify=("kept",), compare=("a", "weights.b"))]
    clean = {"clean-fp8": Flags(margins={"c": 0.99, "d": 1.0}), "clean-int4": Flags(), "bf16-again": Flags()}
    found = clean | {"x": Flags(["kept"], compare=["a", "weights.b", "z"], margins={"a": -0.49, "z": -0.01})}
    assert wrong(faults, found, outcome[1]) == []
    assert wrong(faults, found, outcome[1], conclusive=True) == [
        "x: a stands -0.49 half-widths from its bound, fewer than 0.5",
        "clean-fp8: c stands 0.99 half-widths from its bound, fewer than 1.0",
    ]


def test_the_committed_table_lists_every_fault() -> None:
    """And has no row that nothing made; its flags are compared by `make mutations`."""
    rows = [line.split("|")[1].strip() for line in TABLE.read_text(encoding="utf-8").splitlines() if line[:2] == "| "]
    assert rows[1:-3] == [fault.what for fault in FAULTS]
    assert len({fault.name for fault in FAULTS}) == len(FAULTS) >= 40


@pytest.mark.slow
def test_the_committed_rows_of_these_faults_are_what_was_found(outcome: tuple[dict[str, Flags], Results]) -> None:
    lines = TABLE.read_text(encoding="utf-8").splitlines(keepends=True)
    for fault in FAULTS:
        assert fault.name not in FEW or row(fault, outcome[0][fault.name]) in lines


def test_rows_hold_what_every_machine_finds() -> None:
    fault = Fault("x", "what", compare=("a.b", "weights.c", "not.seen"))
    flags = Flags(["kept"], ["config"], ["weights.c", "weights.d", "a.b", "by.chance"])
    assert row(fault, flags) == "| what | kept, (config) | weights.c, weights.d | a.b |\n"
    assert more([fault], {"x": flags}) == ["what: also by.chance"]
    assert row(Fault("x", "what"), Flags(refused="no")) == "| what | – | refused: no | – |\n"
    blind = Fault("x", "what", blind="reason")
    assert row(blind, Flags()) == "| what | – | – | nothing: reason |\n"
    assert row(blind, Flags(["kept"])) == "| what | kept | – | – |\n"


def test_what_was_found_is_counted() -> None:
    """Not what was expected: a fault that nothing saw is not said to be flagged."""
    faults = [Fault("seen", "one", verify=("kept",)), Fault("unseen", "other", verify=("kept",))]
    found = {"seen": Flags(["kept"]), "unseen": Flags()} | {name: Flags() for name in CLEAN}
    assert table(faults, found).splitlines()[-1] == "2 faults: 1 flagged, 1 unseen."


def test_a_stale_table_is_told_by_its_lines() -> None:
    assert stale("a\nb\n", "a\nb\n") == []
    assert stale("a\nc\n", "a\nb\n")[1:] == ["- b", "+ c"]
    assert stale("a\nb\n", "b\na\n")[1:] == ["other order"]


@pytest.mark.parametrize("write", [False, True])
@pytest.mark.parametrize("failing", [False, True])
def test_a_page_is_written_on_success_alone(
    write: bool, failing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a run that was not asked to write it fails where it is stale."""
    page, found = tmp_path / "mutations.md", {one.name: Flags(["kept"]) for one in FAULTS}
    page.write_text("old\n", encoding="utf-8")
    monkeypatch.setattr(main_module, "TABLE", page)
    monkeypatch.setattr(main_module, "run", lambda folder: (found | {name: Flags() for name in CLEAN}, None))
    monkeypatch.setattr(main_module, "wrong", lambda *_, **__: ["something"] if failing else [])
    assert main_module.main(write) == int(failing or not write)
    assert (page.read_text(encoding="utf-8") == "old\n") == (failing or not write)
    if write and not failing:
        assert main_module.main(False) == 0

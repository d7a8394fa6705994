"""Budget files: the shipped one is sound, every mistake in a user's one is a message that names the place."""

from __future__ import annotations

import pytest

from qconvert.errors import UserError
from qconvert_evals.results import LaneIdentity
from qconvert_reports.budget import default_budget, load_budget, parse_budget
from qconvert_reports.rules import slice_matches

GOOD = """
version = 1
[fp8]
lanes = ["fp8*"]
[[fp8.rows]]
measurement = "logits.kl_mean"
max = 0.02
unit = "nats"
why = "because"
"""


def lane(name: str, scheme: str = "") -> LaneIdentity:
    return LaneIdentity(name, "candidate", "x", None, {}, {"scheme": scheme} if scheme else {}, {}, {})


def test_default_budget_binds_both_precisions_with_reasons() -> None:
    budget = default_budget()
    assert {section.name for section in budget.sections} == {"fp8", "int4"}
    for name in ("fp8", "int4"):
        rules = budget.rules_for(lane(name))
        families = {rule.measurement.partition(".")[0] for rule in rules}
        assert families == {"logits", "router", "mtp", "weights", "hidden", "bench"}
        assert all(len(rule.why) > 40 for rule in rules)


def test_section_applies_by_name_or_by_scheme() -> None:
    budget = parse_budget(GOOD.replace('lanes = ["fp8*"]', 'lanes = ["fp8*"]\nschemes = ["fp8-*"]'), "b")
    assert budget.rules_for(lane("fp8-pow2"))
    assert budget.rules_for(lane("mine", "fp8-block128"))
    assert not budget.rules_for(lane("mine", "int4-g128"))


@pytest.mark.parametrize(
    ("slice_", "pattern", "matches"),
    [
        ("all", "all", True),
        ("domain=code", "all", False),
        ("domain=code", "domain=*", True),
        ("position=1,domain=code", "domain=*", False),
        ("position=1,domain=code", "domain=*,position=1", True),
        ("layer=7,feed=local", "layer=*,feed=free", False),
    ],
)
def test_slices_match_by_key(slice_: str, pattern: str, matches: bool) -> None:
    assert slice_matches(slice_, pattern) is matches


def test_percent_means_hundredths_of_a_fraction_and_fits_nothing_else() -> None:
    rule = parse_budget(GOOD.replace("nats", "%"), "b").sections[0].rules[0]
    assert rule.limit_in("fraction") == pytest.approx(0.0002)
    assert rule.limit_in("nats") is None


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("version = 1", "version = 2", "budget version"),
        ("version = 1", "version = 1\nnam = 'x'", "unknown key"),
        ('lanes = ["fp8*"]', 'lane = ["fp8*"]', "unknown key"),
        ('lanes = ["fp8*"]', 'lanes = "fp8*"', "list of globs"),
        ('lanes = ["fp8*"]', "", "gate nothing"),
        ("max = 0.02", "maximum = 0.02", "unknown key"),
        ("max = 0.02", "", "exactly one bound"),
        ("max = 0.02", "max = 0.02\nmin = 0.1", "exactly one bound"),
        ("max = 0.02", "max = nan", "finite number"),
        ("max = 0.02", "max = true", "finite number"),
        ("max = 0.02", "max = 0.02\nmin_n = 'many'", "type int"),
        ('unit = "nats"', 'unit = "bananas"', "unknown unit"),
        ('why = "because"', "", "needs `why`"),
        ("[fp8]", "[fp8", "not valid TOML"),
        (
            'why = "because"',
            'why = "because"\n[[fp8.rows]]\nmeasurement = "logits.kl_mean"\nmax = 1\nwhy = "x"',
            "same thing",
        ),
    ],
)
def test_mistakes_are_named(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(UserError, match=message) as caught:
        parse_budget(GOOD.replace(old, new), "mine.toml")
    assert "mine.toml" in str(caught.value)


def test_empty_budget_and_absent_file_are_refused(tmp_path: object) -> None:
    with pytest.raises(UserError, match="gate nothing"):
        parse_budget("version = 1", "b")
    with pytest.raises(UserError, match="cannot read the budget"):
        load_budget(f"{tmp_path}/none.toml")

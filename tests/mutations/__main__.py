"""`make mutations`: run every fault, and hold what flagged it against the registry and against docs/mutations.md.

The table says only what is so on every machine: checks of `verify`, refusals, counted rows of `compare` as they came
out, and of the rows that an interval over text decides those that the registry demands. What else was flagged is
printed. Exit code 1 where a fault goes unflagged, a clean lane is flagged or in doubt, or the table is another;
`--write` makes it anew, from a run without such lines only.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.mutations.registry import FAULTS, Fault
from tests.mutations.run import CLEAN, Flags, close_calls, run, wrong

TABLE = Path(__file__).parents[2] / "docs" / "mutations.md"
RENEW = "python -m tests.mutations --write"
HEAD = """# What flags which fault

Made by `make mutations`, which fails where this page is not what it finds. Each fault is put into a conversion of the
shipped model, or into the lane that runs it, and then `verify --against` and `compare` with the default budget look at
it. *verify* lists failed checks without the manifest, whose hashes find any change of a file; checks in brackets need
the manifest. *compare, counted* lists the measurements beyond the budget that are counted over all weights, and quotes
a refusal to compare at all. *compare, at least* lists measurements that a 95% interval over text puts beyond the budget
on every machine; on the one at hand there are usually more, which `make mutations` prints.

| fault | verify | compare, counted | compare, at least |
|---|---|---|---|
"""


def row(fault: Fault, flags: Flags) -> str:
    """One line of the table."""
    checks = ", ".join([*flags.verify, *(f"({name})" for name in flags.manifest)])
    counted = f"refused: {flags.refused}" if flags.refused else ", ".join(flags.counted)
    expected = [name for name in fault.compare if name in flags.compare and name not in flags.counted]
    seen = ", ".join(expected) or (f"nothing: {fault.blind}" if fault.blind and not flags else "")
    return f"| {fault.what} | {checks or '–'} | {counted or '–'} | {seen or '–'} |\n"


def table(faults: Sequence[Fault], found: Mapping[str, Flags]) -> str:
    """The page. The numbers in its last line are counted from what was found."""
    clean = [Fault(name, f"*none: {name}*") for name in CLEAN]
    seen = sum(bool(found[fault.name]) for fault in faults)
    last = f"{len(faults)} faults: {seen} flagged, {len(faults) - seen} unseen.\n"
    return HEAD + "".join(row(fault, found[fault.name]) for fault in [*faults, *clean]) + f"\n{last}"


def more(faults: Sequence[Fault], found: Mapping[str, Flags]) -> list[str]:
    """What flagged a fault here beyond what the table lists."""
    lines = []
    for fault in faults:
        flags = found[fault.name]
        others = [name for name in flags.compare if name not in flags.counted and name not in fault.compare]
        lines += [f"{fault.what}: also {', '.join(others)}"] if others else []
    return lines


def stale(text: str, committed: str) -> list[str]:
    """Lines of the two pages that differ."""
    if text == committed:
        return []
    old, new = committed.splitlines(), text.splitlines()
    lines = [f"- {line}" for line in old if line not in new] + [f"+ {line}" for line in new if line not in old]
    return [f"{TABLE.name} is not what was found; if that is right, renew it: {RENEW}", *(lines or ["other order"])]


def main(write: bool) -> int:
    """Run every fault, print what flagged it, and compare that with the registry and the committed page."""
    with tempfile.TemporaryDirectory(prefix="qconvert-mutations-") as folder:
        found, results = run(Path(folder))
    text = table(FAULTS, found)
    failures = wrong(FAULTS, found, results, conclusive=True)
    if not failures and write:
        TABLE.write_text(text, encoding="utf-8")
    elif not write:
        failures += stale(text, TABLE.read_text(encoding="utf-8"))
    near = [f"{name}: {row} by {margin:.2f} half-widths" for name, row, margin, _ in close_calls(FAULTS, found)[:3]]
    last = failures or [text.splitlines()[-1]]
    print("\n".join([*more(FAULTS, found), "", "nearest to a bound:", *near, "", *last]))
    return 1 if failures else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=main.__doc__)
    parser.add_argument("--write", action="store_true", help=f"make docs/{TABLE.name} anew")
    sys.exit(main(parser.parse_args().write))

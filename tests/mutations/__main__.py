"""`python -m tests.mutations [FILE]`: run every fault and print the table as Markdown; exit 1 where one goes unflagged.

The committed table is docs/mutations.md.
"""

import sys
import tempfile
from pathlib import Path

from tests.mutations.registry import FAULTS
from tests.mutations.run import CLEAN, Flags, run, wrong

HEAD = """# What flags which fault

Made by `make mutations`. Each fault is put into a conversion of the shipped model, or into the lane that runs it, and
then `verify --against` and `compare` with the default budget look at it. *verify* lists failed checks without the
manifest, whose hashes find any change of a file; checks in brackets need the manifest. *compare* lists the measurements
beyond the budget, of {tokens:,} tokens; a refusal to compare at all is quoted.

| fault | verify | compare |
|---|---|---|
"""


def row(what: str, flags: Flags, blind: str = "") -> str:
    """One line of the table."""
    checks = ", ".join([*flags.verify, *(f"({name})" for name in flags.manifest)])
    measured = f"refused: {flags.refused}" if flags.refused else ", ".join(flags.compare)
    return f"| {what} | {checks or '–'} | {measured or (f'nothing: {blind}' if blind else '–')} |\n"


def main() -> int:
    """Print and judge."""
    with tempfile.TemporaryDirectory(prefix="qconvert-mutations-") as folder:
        found, results = run(Path(folder))
    text = HEAD.format(tokens=results.tool["tokens"])
    text += "".join(row(fault.what, found[fault.name], fault.blind) for fault in FAULTS)
    text += "".join(row(f"*none: {name}*", found[name]) for name in CLEAN)
    failures = wrong(FAULTS, found, results, conclusive=True)
    blind = sum(bool(fault.blind) for fault in FAULTS)
    text += f"\n{len(FAULTS)} faults: {len(FAULTS) - blind} flagged as expected, {blind} known to go unseen.\n"
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(text, encoding="utf-8")
    print("\n".join(failures) if failures else text)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""Print or write the table of compiled kernels."""

from __future__ import annotations

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from qconvert_kernels.compiled import all_cases, compile_case, complaints
from qconvert_kernels.compiled.table import render
from qconvert_kernels.launch import load_kernels


def main() -> int:
    """0 if no kernel gave cause for complaint."""
    parser = argparse.ArgumentParser(prog="python -m qconvert_kernels.compiled", description=__doc__)
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table here instead of printing it")
    write_to = parser.parse_args().write
    cases = list(all_cases())
    with ProcessPoolExecutor(min(4, os.cpu_count() or 1), get_context("spawn")) as pool:
        made = dict(zip(cases, pool.map(compile_case, cases), strict=True))
    table = render(load_kernels("numerics").triton.__version__, {case.name: result for case, result in made.items()})
    if write_to is None:
        sys.stdout.write(table)
    else:
        write_to.write_text(table)
    wrong = [f"{case.name}: {text}\n" for case, result in made.items() for text in complaints(case, result)]
    sys.stderr.write("".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())

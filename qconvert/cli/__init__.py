"""The command line: `qconvert COMMAND …`.

The core's own commands (quantize, dequantize, convert, inspect, verify) stand in the modules beside this one; the
rooms above add theirs through the entry-point group `qconvert.commands`, so nothing here imports upwards. Neither kind
is imported to print `qconvert --help`: a command's module is loaded when it is called, and its one-line summary is read
from the source text. That keeps torch out of the way of `--help`.

Exit codes: 0 fine · 1 verification failed or drift over budget · 2 bad input, usage, or what the operating system
refuses · 3 inconclusive · 70 a bug · 130 interrupted. A user's mistake prints one message and no traceback; anything
else is a bug and shows its traceback.
"""

from qconvert.cli.commands import main

__all__ = ["main"]

"""INT4 with one scale per 32 inputs of a row; see `qconvert.schemes.int4`."""

import functools

from qconvert.schemes import int4

make = functools.partial(int4.make, 32)

"""INT4 with one scale per 128 inputs of a row; see `qconvert.schemes.int4`."""

import functools

from qconvert.schemes import int4

make = functools.partial(int4.make, 128)

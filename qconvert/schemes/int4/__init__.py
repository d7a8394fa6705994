"""INT4 in groups: the number format in `number_format`, the choice of scales in `rules`; sizes are schemes of their own
(`int4_g128`, `int4_g64`, `int4_g32`)."""

from qconvert.schemes.int4.number_format import METHODS, Int4, make

__all__ = ["METHODS", "Int4", "make"]

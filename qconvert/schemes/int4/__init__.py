"""INT4 in groups: the number format in `number_format`, the choice of scales in `rules`, codes that look at inputs in
`gptq`; sizes are schemes of their own (`int4_g128`, `int4_g64`, `int4_g32`)."""

from qconvert.schemes.int4.number_format import METHODS, WEIGHTED, Int4, make

__all__ = ["METHODS", "WEIGHTED", "Int4", "make"]

"""Mixture-of-experts layers: every expert's product in one launch, over tokens sorted by expert.

    routing    which rows of which tile belong to which expert
    stacked    the weights of all experts of a layer, stacked
    naive      the specification: one expert after the other, in plain torch
    moe        routed experts of a layer from x, experts and weights, made of the kernels in fp8, int4, combine

`moe`, `fp8`, `int4`, `combine` and `sort` need triton, the others do not.
"""

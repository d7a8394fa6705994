"""Timing the kernels on a GPU: what is timed, how, beside what, and against which targets.

    shapes      the real model's sizes                  problem    one thing to time: inputs, truth, bytes and FLOPs
    dense, experts, others      the problems
    timing      CUDA graphs over rotating inputs        peers      the same product by torch and by other people
    ceilings    what this GPU copies and multiplies     measure    correctness first, then times: one row a problem
    targets     what the rows are held against          tune       the quickest tiling for each row, as a configuration
    record      all of it as JSON

A figure without a correct result beside it does not exist: a kernel whose output is off is reported as wrong and not
timed. Nothing in here prints.
"""

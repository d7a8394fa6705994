"""All statistics of the comparison: intervals that cluster by document, and tests on pairs.

    intervals   estimates with bounds: means, ratios, quantiles, proportions
    paired      two lanes on the same documents: tests, equivalence, corrections, what could have been seen

numpy and the standard library only; scipy and statsmodels are the witnesses in the tests.
"""

from qconvert_evals.statistics.intervals import (
    CONFIDENCE,
    NOTHING,
    RESAMPLES,
    SEED,
    Array,
    Estimate,
    Index,
    correlation,
    exact,
    linearised,
    mean,
    proportion,
    quantiles,
    ratio,
    root_mean_square,
    standard_error,
    t_quantile,
    wilson,
)
from qconvert_evals.statistics.paired import (
    Equivalence,
    bootstrap_mean,
    equivalence,
    holm,
    mcnemar,
    smallest_detectable,
    t_test,
)

__all__ = [
    "CONFIDENCE",
    "NOTHING",
    "RESAMPLES",
    "SEED",
    "Array",
    "Equivalence",
    "Estimate",
    "Index",
    "bootstrap_mean",
    "correlation",
    "equivalence",
    "exact",
    "holm",
    "linearised",
    "mcnemar",
    "mean",
    "proportion",
    "quantiles",
    "ratio",
    "root_mean_square",
    "smallest_detectable",
    "standard_error",
    "t_quantile",
    "t_test",
    "wilson",
]

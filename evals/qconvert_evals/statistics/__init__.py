"""All statistics of the comparison: intervals that cluster by document, and tests on pairs.

    intervals   estimates with bounds: means, ratios, shares, correlations, differences
    spread      how far an estimate may be off, from the influence of each document
    quantiles   the same for quantiles
    paired      two lanes on the same documents: tests, equivalence, corrections, what could have been seen

Distributions come from scipy; Wilson's interval, McNemar's test and Holm's correction from statsmodels, imported where
they are used because it brings pandas along. Own formulas of the same things are the witnesses in the tests.
"""

from qconvert_evals.statistics.intervals import (
    NOTHING,
    Array,
    Estimate,
    Index,
    certain,
    correlation,
    difference,
    effective_trials,
    exact,
    linearised,
    mean,
    none_seen,
    proportion,
    ratio,
    root_mean_square,
    standard_error,
    wilson,
)
from qconvert_evals.statistics.paired import (
    Equivalence,
    equivalence,
    holm,
    mcnemar,
    smallest_detectable,
    t_test,
)
from qconvert_evals.statistics.quantiles import quantiles
from qconvert_evals.statistics.spread import CONFIDENCE, RESAMPLES, SEED, t_quantile

__all__ = [
    "CONFIDENCE",
    "NOTHING",
    "RESAMPLES",
    "SEED",
    "Array",
    "Equivalence",
    "Estimate",
    "Index",
    "certain",
    "correlation",
    "difference",
    "effective_trials",
    "equivalence",
    "exact",
    "holm",
    "linearised",
    "mcnemar",
    "mean",
    "none_seen",
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

"""What every comparison shares: corrections, and bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as scipy_stats

Floats = NDArray[np.float64]

POWER = 0.8
"""The chance of a decision that a number of items is asked for."""


class Interval(NamedTuple):
    """Two ends of a confidence interval."""

    low: float
    high: float


class Sampling(NamedTuple):
    """How bootstrap intervals are made: those of units, the one place where t does not serve."""

    confidence: float = 0.95
    resamples: int = 9999
    seed: int = 0


def holm(p: ArrayLike) -> Floats:
    """Holm's step-down adjustment of one family; NaNs stay NaN and do not count."""
    p = np.asarray(p, dtype=np.float64)
    adjusted = np.full_like(p, np.nan)
    # statsmodels' multipletests collects garbage at every call, which takes longer than a study's
    # tests together; the tests hold this to its results.
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    steps = p[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def bca(
    data: Sequence[Floats], statistic: Callable[..., Any], sampling: Sampling
) -> tuple[float, float, float]:
    """BCa interval of a statistic of paired data, and the bootstrap's standard error.

    Args:
        data: Arrays of one length, resampled together.
        statistic: Takes the arrays and `axis`.
        sampling: Level, resamples and seed of the draws.

    Returns:
        low, high, error; the percentile interval where BCa has none (Efron 1987).
    """
    for method in ("BCa", "percentile"):
        with np.errstate(invalid="ignore", divide="ignore"):
            bootstrap = scipy_stats.bootstrap(
                data, statistic, paired=True, vectorized=True, method=method,
                n_resamples=sampling.resamples, confidence_level=sampling.confidence,
                rng=np.random.default_rng(sampling.seed),
            )  # fmt: skip
        low, high = bootstrap.confidence_interval
        if np.isfinite([low, high]).all():
            break
    return float(low), float(high), float(bootstrap.standard_error)

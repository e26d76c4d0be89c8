"""What every comparison shares: bootstrap intervals, corrections, trends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats as scipy_stats

from keepset.errors import KeepsetError

Floats = NDArray[np.float64]

POWER = 0.8
"""The chance of a decision that a number of items is asked for."""


class Interval(NamedTuple):
    """Two ends of a confidence interval."""

    low: float
    high: float


class Sampling(NamedTuple):
    """How bootstrap intervals are made."""

    confidence: float = 0.95
    resamples: int = 9999
    seed: int = 0


class Trend(NamedTuple):
    """Page's L, and the one-sided p of "no ordered increase"."""

    statistic: float
    p: float


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


def page_trend(data: ArrayLike) -> Trend:
    """Page's test for an ordered increase (Page 1963).

    Args:
        data: (subjects, conditions), conditions in the order in which they should increase.

    Returns:
        NaN for fewer than two subjects or three conditions.
    """
    data = np.asarray(data, dtype=np.float64)
    if data.ndim != 2:
        raise KeepsetError(f"page_trend needs subjects x conditions, got shape {data.shape}")
    if data.shape[0] < 2 or data.shape[1] < 3:
        return Trend(np.nan, np.nan)
    page = scipy_stats.page_trend_test(data)
    return Trend(float(page.statistic), float(page.pvalue))

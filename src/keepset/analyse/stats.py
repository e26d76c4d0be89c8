"""What every comparison shares: a correction for many tests, and an interval's two ends."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

POWER = 0.8
"""The chance of a decision that a number of items is asked for."""


class Interval(NamedTuple):
    """Two ends of a confidence interval."""

    low: float
    high: float


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

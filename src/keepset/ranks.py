"""Spearman's correlation under the bootstrap, for thousands of units and resamples at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Elements of one chunk of bootstrap counts: small enough to stay in the processor's cache.
_CHUNK = 50_000


def bootstrap_spearman(x: Floats, y: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """Spearman's correlation of every resample of units.

    A resample is a count per unit, so its mid-ranks are cumulative sums of counts in an order
    that is sorted once: the exact bootstrap, without a sort per resample.

    Args:
        x: (n,) finite.
        y: (n,) finite.
        resamples: How many.
        rng: Source of the draws.

    Returns:
        (resamples,); NaN where a resample of x or y is constant.
    """
    order = np.argsort(x, kind="stable")
    x_group = np.unique(x[order], return_inverse=True)[1]
    y_group = np.unique(y[order], return_inverse=True)[1]
    found = [
        _weighted_correlation(counts, _midranks(counts, x_group), _midranks(counts, y_group))
        for counts in _counts(len(x), resamples, rng)
    ]
    return np.concatenate(found)


def mean_over_layers(draws: Floats, rng: np.random.Generator) -> Floats:
    """Draw layers with replacement, and for each of them an own resample of its units.

    Args:
        draws: (layers, resamples) what `bootstrap_spearman` gave for each layer.
        rng: Source of the draws.

    Returns:
        (resamples,) means over the drawn layers.
    """
    n_layers, resamples = draws.shape
    layer = rng.integers(n_layers, size=(resamples, n_layers))
    resample = rng.integers(resamples, size=(resamples, n_layers))
    return np.nanmean(draws[layer, resample], axis=1)


def _counts(n: int, resamples: int, rng: np.random.Generator) -> Iterator[Floats]:
    """How often each resample drew each of n units: chunks of (rows, n)."""
    step = max(1, _CHUNK // n)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def _midranks(counts: Floats, group: NDArray[np.intp]) -> Floats:
    """Mid-rank of each unit among the drawn: (rows, n) counts -> (rows, n), centred at 0.

    Args:
        counts: How often each unit was drawn.
        group: (n,) position of each unit's value among the distinct values.
    """
    order = np.argsort(group, kind="stable")
    if (np.diff(group) == 1).all():
        drawn = counts  # sorted and without ties: nothing to gather
    else:
        starts = np.searchsorted(group[order], np.arange(group.max() + 1))
        drawn = np.add.reduceat(counts[:, order], starts, axis=1)
    ranks = drawn.cumsum(axis=1)
    ranks -= drawn / 2
    ranks -= counts.shape[1] / 2
    return ranks if drawn is counts else ranks[:, group]


def _weighted_correlation(counts: Floats, x: Floats, y: Floats) -> Floats:
    """Pearson's correlation per row of centred values under weights: three (rows, n) -> (rows,)."""
    weighted = counts * x
    xy = np.einsum("ij,ij->i", weighted, y)
    xx = np.einsum("ij,ij->i", weighted, x)
    yy = np.einsum("ij,ij->i", counts * y, y)
    with np.errstate(invalid="ignore", divide="ignore"):
        return xy / np.sqrt(xx * yy)

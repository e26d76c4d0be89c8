"""Correlations of scores, and Spearman's under the bootstrap for thousands of units at once."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats as scipy_stats

from keepset.analyse.stats import Floats
from keepset.errors import KeepsetError

_COEFFICIENTS = ["pearson", "spearman", "kendall"]

# Elements of one chunk of bootstrap counts: small enough to stay in the processor's cache.
_CHUNK = 50_000


def bootstrap_spearman(x: Floats, y: Floats, resamples: int, rng: np.random.Generator) -> Floats:
    """Spearman's correlation of every resample of units.

    A resample is a count per unit, so its mid-ranks are cumulative sums of counts in an order
    that is sorted once: the exact bootstrap, without a sort per resample.

    Args:
        x, y: (n,) finite.
        resamples: How many.
        rng: Source of the draws.

    Returns:
        (resamples,); NaN where a resample of x or y is constant.
    """
    order = np.argsort(x, kind="stable")
    x_group = np.unique(x[order], return_inverse=True)[1]
    y_group = np.unique(y[order], return_inverse=True)[1]
    draws = [
        _weighted_correlation(counts, _midranks(counts, x_group), _midranks(counts, y_group))
        for counts in _counts(len(x), resamples, rng)
    ]
    return np.concatenate(draws)


def mean_over_layers(draws: Floats, rng: np.random.Generator) -> Floats:
    """Draw layers with replacement, and for each of them another resample of its units.

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

    `group` (n,) is the position of each unit's value among the distinct values.
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


def correlate(
    size: ArrayLike,
    impact: ArrayLike,
    layer: ArrayLike,
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> pd.DataFrame:
    """Correlate two scores of the same units, in each layer and over layers.

    The pooled row (layer -1) is the mean over layers of the layers' coefficients, so that
    differences of scale between layers do not count as agreement between units. Its interval
    draws layers, then units within them: a two-stage cluster bootstrap (Davison and Hinkley 1997,
    section 3.8), a little wide where layers are many and still defined where there is one.

    Args:
        size, impact: (n,) the two scores.
        layer: (n,) int, the layer of each unit.
        confidence: Level of the intervals.
        resamples: Bootstrap resamples.
        seed: Seed of the bootstrap.

    Returns:
        Columns layer, pearson, spearman, kendall, ci_low, ci_high (percentile interval of
        spearman over units), n_units. NaN where a score is constant or a layer has fewer than
        three units; such layers do not enter the pooled row, n_units apart.

    Raises:
        KeepsetError: lengths differ, there are no units, or a value is not finite.
    """
    x, y = np.asarray(size, dtype=np.float64), np.asarray(impact, dtype=np.float64)
    layers = np.asarray(layer)
    if not x.shape == y.shape == layers.shape or x.ndim != 1 or len(x) == 0:
        raise KeepsetError(
            f"correlate needs three lists of one length, got {x.shape}, {y.shape}, {layers.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise KeepsetError("correlate needs finite scores; check the activation cache")
    rows, draws = [], []
    for number in np.unique(layers):
        units = layers == number
        row: dict[str, float] = {"layer": int(number), **_coefficients(x[units], y[units])}
        if not np.isnan(row["spearman"]):
            rng = np.random.default_rng([seed, int(number)])
            draws.append(bootstrap_spearman(x[units], y[units], resamples, rng))
            row |= _percentiles(draws[-1], confidence)
        rows.append({**row, "n_units": int(units.sum())})
    table = pd.DataFrame(rows)
    pooled = {"layer": -1, **table[_COEFFICIENTS].mean(), "n_units": len(x)}
    if draws:
        means = mean_over_layers(np.array(draws), np.random.default_rng(seed))
        pooled |= _percentiles(means, confidence)
    table = pd.concat([table, pd.DataFrame([pooled])], ignore_index=True)
    return table.reindex(columns=["layer", *_COEFFICIENTS, "ci_low", "ci_high", "n_units"])


def _coefficients(x: Floats, y: Floats) -> dict[str, float]:
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return dict.fromkeys(_COEFFICIENTS, np.nan)
    return {
        "pearson": float(np.corrcoef(x, y)[0, 1]),
        "spearman": float(scipy_stats.spearmanr(x, y).statistic),
        "kendall": float(scipy_stats.kendalltau(x, y).statistic),
    }


def _percentiles(draws: Floats, confidence: float) -> dict[str, float]:
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(draws, [tail, 1 - tail])
    return {"ci_low": float(low), "ci_high": float(high)}

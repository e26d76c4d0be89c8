"""Correlations of two scores of the same units, layer by layer."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from keepset.analyse.stats import Floats
from keepset.errors import KeepsetError

COEFFICIENTS = ["pearson", "spearman", "kendall"]


def correlate(size: ArrayLike, impact: ArrayLike, layer: ArrayLike) -> pd.DataFrame:
    """Correlate two scores of the same units in each layer.

    Args:
        size, impact: (n,) the two scores.
        layer: (n,) int, the layer of each unit.

    Returns:
        Columns layer, pearson, spearman, kendall, n_units; a row per layer, in order. NaN where a
        score is constant or a layer has fewer than three units.

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
    rows = []
    for number in np.unique(layers):
        units = layers == number
        coefficients = _coefficients(x[units], y[units])
        rows.append({"layer": int(number), **coefficients, "n_units": int(units.sum())})
    return pd.DataFrame(rows)


def _coefficients(x: Floats, y: Floats) -> dict[str, float]:
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return dict.fromkeys(COEFFICIENTS, np.nan)
    return {
        "pearson": float(np.corrcoef(x, y)[0, 1]),
        "spearman": float(scipy_stats.spearmanr(x, y).statistic),
        "kendall": float(scipy_stats.kendalltau(x, y).statistic),
    }


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's coefficient of two scores of one layer's units; NaN as for `correlate`."""
    return float(correlate(x, y, np.zeros(len(np.asarray(x)), int))["spearman"].iloc[0])

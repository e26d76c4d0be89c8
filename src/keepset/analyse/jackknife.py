"""How sure a number is, from what it would be without each part of what it was taken on.

The delete-one jackknife (Tukey 1958; Efron and Stein 1981): with theta_g the number without part g
of G, its standard error is sqrt((G - 1) / G * sum_g (theta_g - mean)^2), with G - 1 degrees of
freedom. It needs no model of the number, and none of the parts but that they are a sample.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from keepset.analyse.bounds import Effect
from keepset.analyse.effects import t_effect
from keepset.analyse.perplexities import Estimate
from keepset.analyse.stats import Floats, Interval
from keepset.errors import KeepsetError


def jackknife(whole: float, left_out: ArrayLike) -> Estimate:
    """An estimate with its jackknife error.

    Args:
        whole: The number, of everything.
        left_out: (G,) the number without each part.

    Returns:
        Its error and df are NaN and 0 for fewer than two parts, or where a number is not known.
    """
    values = np.asarray(left_out, dtype=np.float64)
    parts = len(values)
    if parts < 2 or not np.isfinite(values).all():
        return Estimate(whole, math.nan, 0.0)
    squares = float(((values - values.mean()) ** 2).sum())
    return Estimate(whole, math.sqrt((parts - 1) / parts * squares), parts - 1.0)


def interval(estimate: Estimate, confidence: float) -> Interval:
    """The t interval of an estimate; NaN where its error is not known."""
    if not estimate.df > 0:
        return Interval(math.nan, math.nan)
    half = float(scipy_stats.t.ppf(0.5 + confidence / 2, estimate.df)) * estimate.error
    return Interval(estimate.value - half, estimate.value + half)


def rank_gap(
    better: ArrayLike, worse: ArrayLike, truth: ArrayLike, layer: ArrayLike, confidence: float
) -> Effect:
    """How much better one score ranks units than another: a difference of rank correlations.

    Both are correlations with `truth` of ranks within layers, centred there. Units are what is
    sampled: one at a time is left out, and its layer is ranked again. The text is fixed.

    Args:
        better, worse: (n,) the score that should rank better, and the other.
        truth: (n,) what both should follow.
        layer: (n,) the layer of each unit.
        confidence: Level of the interval.

    Raises:
        KeepsetError: lengths differ, a score is not finite, or there are fewer than three units.
    """
    columns = [np.asarray(values, dtype=np.float64) for values in (better, worse, truth, layer)]
    if len({values.shape for values in columns}) != 1 or columns[0].ndim != 1:
        raise KeepsetError("rank correlations need scores of the same units")
    table = np.stack(columns, axis=1)
    if len(table) < 3:
        raise KeepsetError(f"a rank correlation needs three units, got {len(table)}")
    if not np.isfinite(table).all():
        raise KeepsetError("rank correlations need finite scores; ablate the units again")
    gap = jackknife(
        _gap(table), [_gap(np.delete(table, unit, axis=0)) for unit in range(len(table))]
    )
    return t_effect(
        gap.value, gap.error, gap.df, confidence,
        n=len(table), unit="neuron", test="jackknife t-test",
    )  # fmt: skip


def _gap(table: Floats) -> float:
    """Of columns better, worse, truth and layer."""
    ranks = pd.DataFrame(table[:, :3]).groupby(table[:, 3]).rank()
    x, y, z = (ranks - ranks.groupby(table[:, 3]).transform("mean")).to_numpy().T
    with np.errstate(invalid="ignore", divide="ignore"):
        with_x, with_y = ((a @ z) / math.sqrt((a @ a) * (z @ z)) for a in (x, y))
    return float(with_x - with_y)

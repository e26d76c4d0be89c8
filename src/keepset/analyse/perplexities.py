"""Perplexity: intervals and tests of two settings on the same blocks of text.

Ratios are `a` over `b`. What cannot be known (one block) is NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from statsmodels.stats import weightstats

from keepset.analyse.stats import Floats, Sampling, bca
from keepset.errors import KeepsetError


class Ratio(NamedTuple):
    """A ratio of perplexities, its interval, and the two-sided p of "the ratio is 1"."""

    ratio: float
    low: float
    high: float
    p: float


def perplexity(nll: float, n: float) -> float:
    """exp(nats / n); infinite where that overflows."""
    with np.errstate(over="ignore"):
        return float(np.exp(np.float64(nll) / n))


def log_ratios(nll_a: ArrayLike, nll_b: ArrayLike, n_tokens: ArrayLike) -> Floats:
    """Per-block terms whose mean is the log of the ratio of perplexities, blocks of any length."""
    a, b, n = (np.asarray(x, dtype=np.float64) for x in (nll_a, nll_b, n_tokens))
    if not a.shape == b.shape == n.shape or a.ndim != 1 or len(a) == 0:
        raise KeepsetError(
            f"paired blocks need three lists of one length, got {a.shape}, {b.shape}, {n.shape}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all() and (n > 0).all()):
        raise KeepsetError("blocks need a finite nll and at least one token each")
    return (a - b) / n.mean()


def paired_ratio(
    nll_a: ArrayLike, nll_b: ArrayLike, n_tokens: ArrayLike, sampling: Sampling
) -> Ratio:
    """Ratio of the perplexities of two settings on the same blocks.

    The interval is a BCa bootstrap over blocks (Efron 1987). The p is of a paired t-test of the
    blocks' log ratios: with 8 blocks the p of a rank or sign-flip test cannot go below
    1/128, which is never significant after the correction for a hundred settings.

    Args:
        nll_a, nll_b: (blocks,) summed nats of the same blocks.
        n_tokens: (blocks,) predicted tokens.
        sampling: Level, resamples and seed of the interval.

    Returns:
        exp((sum nll_a - sum nll_b) / sum n_tokens). Where all blocks agree the interval is the
        point; with one block interval and p are NaN.

    Raises:
        KeepsetError: lengths differ, there is no block, or a value is not finite.
    """
    terms = log_ratios(nll_a, nll_b, n_tokens)
    ratio = float(np.exp(terms.mean()))
    if len(terms) < 2:
        return Ratio(ratio, np.nan, np.nan, np.nan)
    tokens = np.asarray(n_tokens, dtype=np.float64)
    if np.ptp(terms / tokens) == 0:
        return Ratio(ratio, ratio, ratio, 1.0 if terms.mean() == 0 else 0.0)
    low, high, _ = bca(
        (terms, tokens / tokens.mean()),
        lambda d, n, axis: d.sum(axis=axis) / n.sum(axis=axis),
        sampling,
    )
    p = float(weightstats.DescrStatsW(terms).ttest_mean(0.0)[1])
    return Ratio(ratio, float(np.exp(low)), float(np.exp(high)), p)


def tost_ratio(nll_a: ArrayLike, nll_b: ArrayLike, n_tokens: ArrayLike, margin: float) -> float:
    """Equivalence of two perplexities on the same blocks: two one-sided paired t-tests of logs.

    Args:
        nll_a, nll_b, n_tokens: As for `paired_ratio`.
        margin: Ratios within (1 / (1 + margin), 1 + margin) count as the same.

    Returns:
        p of "they differ by the margin or more"; NaN with one block.

    Raises:
        KeepsetError: as `paired_ratio`.
    """
    terms = log_ratios(nll_a, nll_b, n_tokens)
    bound = np.log1p(margin)
    if len(terms) < 2:
        return np.nan
    if np.ptp(terms) == 0:
        return 0.0 if abs(terms[0]) < bound else 1.0
    return float(weightstats.DescrStatsW(terms).ttost_mean(-bound, bound)[0])

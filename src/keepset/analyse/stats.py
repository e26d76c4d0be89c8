"""Intervals, tests and corrections: statsmodels and scipy do the work.

Everything here is paired: the same blocks, or the same items, under two settings `a` and `b`.
Differences and ratios are `a` against `b`. What cannot be known (no items, one block) is NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize
from scipy import stats as scipy_stats
from statsmodels.stats import contingency_tables, proportion, weightstats

from keepset.analyse.ranks import correlate as correlate
from keepset.errors import KeepsetError

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """Two ends of a confidence interval."""

    low: float
    high: float


class McNemar(NamedTuple):
    """Exact McNemar test: two-sided p, and the discordant pairs it rests on."""

    p: float
    only_a: int
    only_b: int


class Ratio(NamedTuple):
    """A ratio of perplexities, its interval, and the two-sided p of "the ratio is 1"."""

    ratio: float
    low: float
    high: float
    p: float


class Trend(NamedTuple):
    """Page's L, and the one-sided p of "no ordered increase"."""

    statistic: float
    p: float


def wilson(count: float, n: int, confidence: float) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927); NaN for n = 0."""
    if n == 0:
        return Interval(np.nan, np.nan)
    low, high = proportion.proportion_confint(count, n, alpha=1 - confidence, method="wilson")
    return Interval(float(low), float(high))


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


def discordant(a: ArrayLike, b: ArrayLike) -> tuple[int, int, int]:
    """Pairs right under `a` only, under `b` only, and all pairs."""
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if a.shape != b.shape or a.ndim != 1:
        raise KeepsetError(f"paired items need two lists of one length, got {a.shape}, {b.shape}")
    return int((a & ~b).sum()), int((~a & b).sum()), len(a)


def mcnemar_exact(a: ArrayLike, b: ArrayLike) -> McNemar:
    """Exact McNemar test of two settings on the same items.

    Args:
        a: (n,) bool, correct under the first setting.
        b: (n,) bool, correct under the second.

    Returns:
        p is 1 where no pair is discordant, NaN where there are no items.
    """
    only_a, only_b, n = discordant(a, b)
    if n == 0:
        return McNemar(np.nan, 0, 0)
    test = contingency_tables.mcnemar([[0, only_a], [only_b, 0]], exact=True)
    return McNemar(float(test.pvalue), only_a, only_b)


def tango(only_a: int, only_b: int, n: int, difference: float) -> float:
    """Tango's score statistic of H0: p_a - p_b = difference (Statist. Med. 17, 1998, eq. 20)."""
    distance = only_a - only_b - n * difference
    if distance == 0:
        return 0.0
    quadratic = 2 * n
    linear = (2 * n - only_a + only_b) * difference - only_a - only_b
    constant = -only_b * difference * (1 - difference)
    share_b = (np.sqrt(linear**2 - 4 * quadratic * constant) - linear) / (2 * quadratic)
    variance = n * (2 * share_b + difference * (1 - difference))
    return float(distance / np.sqrt(variance))


def paired_difference(a: ArrayLike, b: ArrayLike, confidence: float) -> Interval:
    """Tango's score interval of accuracy(a) - accuracy(b) on the same items.

    It inverts the test that `tost_accuracy` uses, and keeps an honest width where no pair is
    discordant: there a Wald interval has none, and Newcombe's square-and-add almost none.
    Source: Tango, Statistics in Medicine 17 (1998) 891-908. NaN without items.
    """
    only_a, only_b, n = discordant(a, b)
    if n == 0:
        return Interval(np.nan, np.nan)
    z = scipy_stats.norm.ppf(0.5 + confidence / 2)
    estimate = (only_a - only_b) / n
    edge = 1 - 1e-9
    low, high = -1.0, 1.0
    if estimate > -1:
        low = optimize.brentq(lambda d: tango(only_a, only_b, n, d) - z, -edge, estimate)
    if estimate < 1:
        high = optimize.brentq(lambda d: tango(only_a, only_b, n, d) + z, estimate, edge)
    return Interval(low, high)


def newcombe(a: ArrayLike, b: ArrayLike, confidence: float) -> Interval:
    """Newcombe's interval of accuracy(a) - accuracy(b) on the same items: square-and-add.

    Source: Newcombe, Statistics in Medicine 17 (1998) 2635-2650, method 10, with his correction
    of phi. NaN without items.
    """
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    only_a, only_b, n = discordant(a, b)
    if n == 0:
        return Interval(np.nan, np.nan)
    both = int((a & b).sum())
    neither = n - both - only_a - only_b
    (p_a, p_b), difference = (a.mean(), b.mean()), (only_a - only_b) / n
    down_a, up_a = np.abs(np.array(wilson(both + only_a, n, confidence)) - p_a)
    down_b, up_b = np.abs(np.array(wilson(both + only_b, n, confidence)) - p_b)
    cross = float(both * neither - only_a * only_b)
    cross = max(cross - n / 2, 0.0) if cross > 0 else cross
    spread = np.sqrt(float(n) ** 4 * p_a * (1 - p_a) * p_b * (1 - p_b))
    phi = cross / spread if spread else 0.0
    low = difference - np.sqrt(down_a**2 - 2 * phi * down_a * up_b + up_b**2)
    high = difference + np.sqrt(up_a**2 - 2 * phi * up_a * down_b + down_b**2)
    return Interval(float(low), float(high))


def tost_accuracy(a: ArrayLike, b: ArrayLike, margin: float) -> float:
    """Equivalence of two accuracies on the same items: two one-sided Tango score tests.

    Args:
        a: (n,) bool.
        b: (n,) bool.
        margin: Largest difference that still counts as the same, absolute, in (0, 1).

    Returns:
        p of "they differ by the margin or more"; NaN without items.
    """
    only_a, only_b, n = discordant(a, b)
    if n == 0:
        return np.nan
    above = scipy_stats.norm.sf(tango(only_a, only_b, n, -margin))
    below = scipy_stats.norm.cdf(tango(only_a, only_b, n, margin))
    return float(max(above, below))


def minimum_detectable_difference(
    n: int, discordant: float, alpha: float = 0.05, power: float = 0.8
) -> float:
    """The smallest paired difference of proportions that McNemar's test would likely find.

    Normal approximation of Connor, Biometrics 43 (1987) 207-211, solved for the difference.

    Args:
        n: Pairs.
        discordant: Share of pairs that differ, in [0, 1].
        alpha: Two-sided level.
        power: Chance of finding it.

    Returns:
        NaN where not even `discordant` pairs that all point one way would be enough.
    """
    z_alpha, z_power = scipy_stats.norm.ppf([1 - alpha / 2, power])

    def surplus(difference: float) -> float:
        spread = max(discordant - difference**2, 0.0)
        needed = z_alpha * np.sqrt(discordant) + z_power * np.sqrt(spread)
        return float(np.sqrt(n) * difference - needed)

    if n == 0 or discordant == 0 or surplus(discordant) < 0:
        return np.nan
    return float(optimize.brentq(surplus, 0.0, discordant))


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


def bca_with_error(
    data: Sequence[Floats],
    statistic: Callable[..., Any],
    confidence: float,
    resamples: int,
    seed: int,
) -> tuple[float, float, float]:
    """BCa interval of a statistic of paired data, and the bootstrap's standard error.

    Args:
        data: Arrays of one length, resampled together.
        statistic: Takes the arrays and `axis`.
        confidence: Level.
        resamples: Bootstrap resamples.
        seed: Seed of the draws.

    Returns:
        low, high, error; the percentile interval where BCa has none (Efron 1987).
    """
    for method in ("BCa", "percentile"):
        with np.errstate(invalid="ignore", divide="ignore"):
            found = scipy_stats.bootstrap(
                data,
                statistic,
                paired=True,
                vectorized=True,
                n_resamples=resamples,
                confidence_level=confidence,
                method=method,
                rng=np.random.default_rng(seed),
            )
        low, high = found.confidence_interval
        if np.isfinite([low, high]).all():
            break
    return float(low), float(high), float(found.standard_error)


def bca(
    data: Sequence[Floats],
    statistic: Callable[..., Any],
    confidence: float,
    resamples: int,
    seed: int,
) -> Interval:
    """The interval of `bca_with_error`."""
    return Interval(*bca_with_error(data, statistic, confidence, resamples, seed)[:2])


def paired_ratio(
    nll_a: ArrayLike,
    nll_b: ArrayLike,
    n_tokens: ArrayLike,
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> Ratio:
    """Ratio of the perplexities of two settings on the same blocks.

    The interval is a BCa bootstrap over blocks (Efron 1987). The p is of a paired t-test of the
    blocks' log ratios: a rank or sign-flip test of 8 blocks cannot go below 1/128, which the
    correction for a family of a hundred settings would always drown.

    Args:
        nll_a: (blocks,) summed nats.
        nll_b: (blocks,) summed nats, same blocks.
        n_tokens: (blocks,) predicted tokens.
        confidence: Level of the interval.
        resamples: Bootstrap resamples.
        seed: Seed of the bootstrap.

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
    interval = bca(
        (terms, tokens / tokens.mean()),
        lambda d, n, axis: d.sum(axis=axis) / n.sum(axis=axis),
        confidence,
        resamples,
        seed,
    )
    p = float(weightstats.DescrStatsW(terms).ttest_mean(0.0)[1])
    return Ratio(ratio, float(np.exp(interval.low)), float(np.exp(interval.high)), p)


def tost_ratio(nll_a: ArrayLike, nll_b: ArrayLike, n_tokens: ArrayLike, margin: float) -> float:
    """Equivalence of two perplexities on the same blocks: two one-sided paired t-tests of logs.

    Args:
        nll_a: (blocks,) summed nats.
        nll_b: (blocks,) summed nats, same blocks.
        n_tokens: (blocks,) predicted tokens.
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
    found = scipy_stats.page_trend_test(data)
    return Trend(float(found.statistic), float(found.pvalue))

"""Accuracy: intervals and tests of proportions, mostly of two settings on the same items.

Differences are `a` less `b`. What cannot be known (no items) is NaN.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats as scipy_stats
from statsmodels.stats import contingency_tables, proportion

from keepset.analyse.stats import POWER, Interval
from keepset.errors import KeepsetError


class McNemar(NamedTuple):
    """Exact McNemar test: two-sided p, and the discordant pairs it rests on."""

    p: float
    only_a: int
    only_b: int


def wilson(count: float, n: int, confidence: float) -> Interval:
    """Wilson score interval of a proportion (Wilson 1927); NaN for n = 0."""
    if n == 0:
        return Interval(np.nan, np.nan)
    low, high = proportion.proportion_confint(count, n, alpha=1 - confidence, method="wilson")
    return Interval(float(low), float(high))


def discordant(a: ArrayLike, b: ArrayLike) -> tuple[int, int, int]:
    """Pairs right under `a` only, under `b` only, and all pairs.

    Raises:
        KeepsetError: lengths differ, or an answer is neither right nor wrong.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise KeepsetError(f"paired items need two lists of one length, got {x.shape}, {y.shape}")
    # A NaN as a truth value would be a right answer.
    if not np.isin([x, y], (0.0, 1.0)).all():
        raise KeepsetError("an item has neither a right nor a wrong answer; run the task again")
    return int((x > y).sum()), int((x < y).sum()), len(x)


def mcnemar_exact(a: ArrayLike, b: ArrayLike) -> McNemar:
    """Exact McNemar test of two settings on the same items.

    Args:
        a, b: (n,) bool, correct under the first and the second setting.

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

    It inverts the test that `tost_accuracy` uses, and it has a width also where no pair
    is discordant: there a Wald interval has none, and Newcombe's square-and-add almost none.
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
        a, b: (n,) bool.
        margin: Largest difference that still counts as the same, absolute, in (0, 1).

    Returns:
        p of "they differ by the margin or more"; NaN without items.

    Raises:
        KeepsetError: the margin is out of range.
    """
    if not 0 < margin < 1:
        raise KeepsetError(f"a margin of accuracy must be in (0, 1), got {margin}")
    only_a, only_b, n = discordant(a, b)
    if n == 0:
        return np.nan
    above = scipy_stats.norm.sf(tango(only_a, only_b, n, -margin))
    below = scipy_stats.norm.cdf(tango(only_a, only_b, n, margin))
    return float(max(above, below))


def minimum_detectable_difference(n: int, discordant: float, alpha: float = 0.05) -> float:
    """The smallest paired difference of proportions that McNemar's test would likely find.

    Normal approximation of Connor, Biometrics 43 (1987) 207-211, solved for the difference.

    Args:
        n: Pairs.
        discordant: Share of pairs that differ, in [0, 1].
        alpha: Two-sided level; the chance of finding it is 0.8.

    Returns:
        NaN where not even `discordant` pairs that all point one way would be enough.

    Raises:
        KeepsetError: `discordant` is no share.
    """
    if not 0 <= discordant <= 1:
        raise KeepsetError(f"a share of discordant pairs must be in [0, 1], got {discordant}")
    z_alpha, z_power = scipy_stats.norm.ppf([1 - alpha / 2, POWER])

    def surplus(difference: float) -> float:
        spread = max(discordant - difference**2, 0.0)
        needed = z_alpha * np.sqrt(discordant) + z_power * np.sqrt(spread)
        return float(np.sqrt(n) * difference - needed)

    if n == 0 or discordant == 0 or surplus(discordant) < 0:
        return np.nan
    return float(optimize.brentq(surplus, 0.0, discordant))

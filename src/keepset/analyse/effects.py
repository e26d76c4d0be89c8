"""Effects: what was measured, with an interval and one-sided tests against any bound.

Every effect is of paired or repeated items: blocks of text, items of a task, layers, units. Each
test is a call of scipy or statsmodels that others can repeat from the stored tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats
from statsmodels.stats import weightstats

from keepset.analyse import accuracies, perplexities, stats
from keepset.analyse.bounds import Effect
from keepset.analyse.stats import Floats, Sampling
from keepset.errors import KeepsetError


def _always(p: float) -> Callable[[float], float]:
    """A test whose p does not depend on the bound."""
    return lambda _: p


def _t_tests(values: Floats) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """One-sided t-tests of a mean; where nothing varies the mean is the truth."""
    if len(values) < 2:
        return _always(math.nan), _always(math.nan)
    if np.ptp(values) == 0:
        mean = float(values[0])
        return (lambda bound: float(mean <= bound)), (lambda bound: float(mean >= bound))
    described = weightstats.DescrStatsW(values)
    return (
        lambda bound: float(described.ttest_mean(bound, alternative="larger")[1]),
        lambda bound: float(described.ttest_mean(bound, alternative="smaller")[1]),
    )


def _error(values: Floats) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan


def log_ratio(
    nll_a: ArrayLike, nll_b: ArrayLike, n_tokens: ArrayLike, sampling: Sampling
) -> Effect:
    """Log of the ratio of two perplexities on the same blocks.

    BCa interval over blocks; paired t-tests of the blocks' log ratios. Arguments and errors are
    those of `perplexities.paired_ratio`.
    """
    ratio = perplexities.paired_ratio(nll_a, nll_b, n_tokens, sampling)
    terms = perplexities.log_ratios(nll_a, nll_b, n_tokens)
    return Effect(
        float(terms.mean()), math.log(ratio.low), math.log(ratio.high), _error(terms), len(terms),
        "block", "paired t-test", *_t_tests(terms),
    )  # fmt: skip


def mean(values: ArrayLike, unit: str, confidence: float) -> Effect:
    """A mean of independent values, layers most often: t interval and t-tests.

    Raises:
        KeepsetError: there is no value, or one is not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0 or not np.isfinite(x).all():
        raise KeepsetError(f"a mean over {unit}s needs finite values, got {x}")
    low = high = math.nan
    if len(x) > 1:
        low, high = weightstats.DescrStatsW(x).tconfint_mean(1 - confidence)
    return Effect(
        float(x.mean()), float(low), float(high), _error(x), len(x), unit, "t-test", *_t_tests(x)
    )


def correlation_difference(a: ArrayLike, b: ArrayLike, sampling: Sampling) -> Effect:
    """Mean difference of two correlations of the same layers, on two corpora say.

    Layers are the clusters: their differences are resampled (BCa), and t-tested.

    Args:
        a, b: (layers,) coefficients of the same layers.
        sampling: Level, resamples and seed of the interval.

    Raises:
        KeepsetError: lengths differ, or a coefficient is not finite.
    """
    x, y = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if x.shape != y.shape:
        raise KeepsetError(f"correlations of the same layers are needed, got {x.shape}, {y.shape}")
    difference = mean(x - y, "layer", sampling.confidence)
    if len(x) < 2:
        return difference
    if np.ptp(x - y) == 0:
        return replace(difference, low=difference.estimate, high=difference.estimate)
    low, high, _ = stats.bca((x - y,), lambda d, axis: d.mean(axis=axis), sampling)
    return replace(difference, low=low, high=high, test="paired t-test")


def mean_difference(a: ArrayLike, b: ArrayLike, unit: str, confidence: float) -> Effect:
    """Difference of two means of different items: Welch's interval and tests.

    Raises:
        KeepsetError: a side has no value, or one that is not finite.
    """
    x, y = (np.asarray(values, dtype=np.float64) for values in (a, b))
    estimate = mean(x, unit, confidence).estimate - mean(y, unit, confidence).estimate
    n = min(len(x), len(y))
    name, unknown = "Welch's t-test", _always(math.nan)
    if n < 2 or (np.ptp(x) == 0 and np.ptp(y) == 0):
        return Effect(estimate, math.nan, math.nan, math.nan, n, unit, name, unknown, unknown)
    compared = weightstats.CompareMeans.from_data(x, y)
    low, high = compared.tconfint_diff(1 - confidence, usevar="unequal")
    error = math.sqrt(x.var(ddof=1) / len(x) + y.var(ddof=1) / len(y))

    def p(alternative: str) -> Callable[[float], float]:
        return lambda bound: float(
            compared.ttest_ind(alternative=alternative, usevar="unequal", value=bound)[1]
        )

    tests = p("larger"), p("smaller")
    return Effect(estimate, float(low), float(high), error, n, unit, name, *tests)


def accuracy_difference(a: ArrayLike, b: ArrayLike, confidence: float) -> Effect:
    """accuracy(a) - accuracy(b) on the same items.

    Tango's score interval and tests; against 0 the exact McNemar test, one-sided.

    Args:
        a, b: (n,) bool, correct under the first and the second setting.
        confidence: Level of the interval.

    Raises:
        KeepsetError: lengths differ.
    """
    only_a, only_b, n = accuracies.discordant(a, b)
    low, high = accuracies.paired_difference(a, b, confidence)
    estimate = (only_a - only_b) / n if n else math.nan
    # Where no pair is discordant the estimated variance is 0; the score interval's is not.
    z = scipy_stats.norm.ppf(0.5 + confidence / 2)
    wald = math.sqrt(max((only_a + only_b) / n - estimate**2, 0.0) / n) if n else math.nan
    error = wald or (high - low) / (2 * z)

    def p(tail: str, bound: float) -> float:
        if n == 0:
            return math.nan
        if bound == 0:
            pairs = only_a + only_b
            exact = scipy_stats.binomtest(only_a, max(pairs, 1), alternative=tail).pvalue
            return float(exact) if pairs else 1.0
        score = accuracies.tango(only_a, only_b, n, bound)
        tails = {"greater": scipy_stats.norm.sf, "less": scipy_stats.norm.cdf}
        return float(tails[tail](score))

    return Effect(
        estimate, low, high, error, n, "item", "score test",
        lambda bound: p("greater", bound), lambda bound: p("less", bound),
    )  # fmt: skip


def rank_correlation_gap(
    better: ArrayLike, worse: ArrayLike, truth: ArrayLike, layer: ArrayLike, sampling: Sampling
) -> Effect:
    """How much better one score ranks units than another: a difference of rank correlations.

    Both are correlations with `truth` of ranks within layers. Units are resampled: BCa interval,
    and normal tests with the bootstrap's standard error.

    Args:
        better, worse: (n,) the score that should rank better, and the other.
        truth: (n,) what both should follow.
        layer: (n,) the layer of each unit.
        sampling: Level, resamples and seed.

    Raises:
        KeepsetError: lengths differ, or there are fewer than three units.
    """
    columns = pd.DataFrame({"better": better, "worse": worse, "truth": truth, "layer": layer})
    if len(columns) < 3:
        raise KeepsetError(f"a rank correlation needs three units, got {len(columns)}")
    ranked = columns.groupby("layer").rank()
    ranked -= ranked.groupby(columns["layer"]).transform("mean")
    ranks = [ranked[name].to_numpy() for name in ("better", "worse", "truth")]

    def gap(x: Floats, y: Floats, z: Floats, axis: int) -> Floats:
        return (
            scipy_stats.pearsonr(x, z, axis=axis).statistic
            - scipy_stats.pearsonr(y, z, axis=axis).statistic
        )

    low, high, error = stats.bca(ranks, gap, sampling)
    estimate = float(gap(ranks[0], ranks[1], ranks[2], axis=0))
    return Effect(
        estimate, low, high, error, len(columns), "neuron", "bootstrap z-test",
        lambda bound: float(scipy_stats.norm.sf((estimate - bound) / error)),
        lambda bound: float(scipy_stats.norm.cdf((estimate - bound) / error)),
    )  # fmt: skip


def rising(loss: ArrayLike, first_to_last: Effect) -> Effect:
    """Whether loss rises with every step of an ordered factor.

    Against 0: Page's test of an ordered increase; and, on the other side, the smallest p of a
    fall at one step (paired t-tests), times the number of steps.

    Args:
        loss: (blocks, steps) in order.
        first_to_last: The effect of the last step against the first, which gives the estimate.
    """
    table = np.asarray(loss, dtype=np.float64)
    page = stats.page_trend(table).p
    falls = [_t_tests(step)[1](0.0) for step in np.diff(table, axis=1).T]
    fall = min(1.0, len(falls) * min(falls))
    return replace(first_to_last, test="Page's test", greater=_always(page), less=_always(fall))


def unsampled(estimate: float, unit: str = "run") -> Effect:
    """A quantity that is measured and not sampled, such as a peak of memory: no interval, no p."""
    return Effect(
        estimate, math.nan, math.nan, 0.0, 1, unit, "measured",
        lambda bound: float(estimate <= bound), lambda bound: float(estimate >= bound),
    )  # fmt: skip

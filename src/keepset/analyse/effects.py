"""Effects: what was measured, with an interval and one-sided tests against any bound.

Every effect is of paired or repeated items: documents of text, items of a task, units. Those of
text are t-tests with the formulae of `perplexities`, which others can repeat from stored tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

from keepset.analyse import accuracies, perplexities
from keepset.analyse.bounds import Effect
from keepset.analyse.perplexities import Estimate, Rounding
from keepset.errors import KeepsetError


def t_effect(
    estimate: float, error: float, df: float, confidence: float, *,
    n: int, unit: str, test: str, floor: float = 0.0,
) -> Effect:  # fmt: skip
    """An effect whose error is known with some degrees of freedom: t interval and t-tests.

    Args:
        estimate: What was measured.
        error: Its standard error. Where it is 0, nothing varies, and the estimate is the truth.
        df: Degrees of freedom of the error; interval and p are NaN at 0, or where error is NaN.
        confidence: Level of the interval.
        n, unit, test, floor: As in `Effect`.
    """

    def p(tail: Callable[..., float], bound: float, beyond: bool) -> float:
        if not df > 0 or math.isnan(error):
            return math.nan
        return float(tail((estimate - bound) / error, df)) if error else float(beyond)

    half = error * float(scipy_stats.t.ppf(0.5 + confidence / 2, df)) if df > 0 else math.nan
    return Effect(
        estimate, estimate - half, estimate + half, error, n, unit, test,
        lambda bound: p(scipy_stats.t.sf, bound, estimate <= bound),
        lambda bound: p(scipy_stats.t.cdf, bound, estimate >= bound),
        floor,
    )  # fmt: skip


def two_sided(effect: Effect) -> float:
    """p of "the effect is 0", from its one-sided tests; NaN where they are."""
    return float(np.minimum(1.0, 2 * np.minimum(effect.greater(0.0), effect.less(0.0))))


def _satterthwaite(*parts: tuple[float, float]) -> tuple[float, float]:
    """Error and degrees of freedom of a sum of (variance, df), independent (Satterthwaite 1946)."""
    variance = sum(part for part, _ in parts)
    if not variance > 0:
        return math.sqrt(variance), max(df for _, df in parts)
    uncertainty = sum(part**2 / df if df > 0 else math.nan for part, df in parts if part)
    return math.sqrt(variance), variance**2 / uncertainty


def log_ratio(
    nll_a: ArrayLike, nll_b: ArrayLike, n_tokens: ArrayLike, document: ArrayLike,
    confidence: float, rounding: Sequence[Rounding] = (),
) -> Effect:  # fmt: skip
    """Log of the ratio of two perplexities on the same text.

    The estimate and its error are those of `perplexities.nats_per_token` of the blocks' differences
    nll_a - nll_b. The variances of `rounding` are added to that of the text, and the degrees of
    freedom are Satterthwaite's.

    Args:
        nll_a, nll_b: (blocks,) summed nats of the same blocks.
        n_tokens: (blocks,) predicted tokens.
        document: (blocks,) number of the document that each block is from.
        confidence: Level of the interval.
        rounding: What `perplexities.rounding` found for either setting, where it was measured.

    Raises:
        KeepsetError: lengths differ, there is no block, or a value is not finite.
    """
    a, b = (np.asarray(nll, dtype=np.float64) for nll in (nll_a, nll_b))
    if a.shape != b.shape:
        raise KeepsetError(f"two settings on the same blocks are needed, got {a.shape}, {b.shape}")
    ratio = perplexities.nats_per_token(a - b, n_tokens, document)
    error, df = _satterthwaite((ratio.error**2, ratio.df), *rounding)
    return t_effect(
        ratio.value, error, df, confidence,
        n=len(np.unique(np.asarray(document))), unit="document", test="t-test",
        floor=math.sqrt(sum(part.variance for part in rounding)),
    )  # fmt: skip


def ratio_of_ratios(
    costs: Sequence[tuple[ArrayLike, ArrayLike]], n_tokens: ArrayLike, document: ArrayLike,
    confidence: float, rounding: Sequence[Rounding] = (),
) -> Effect:  # fmt: skip
    """How many times more one model pays for a setting than another, on the same blocks, as a log.

    Args:
        costs: Of the one and of the other model: (blocks,) nats under the setting, and dense.
        n_tokens, document, confidence, rounding: As for `log_ratio`.

    Raises:
        KeepsetError: as `log_ratio`.
    """
    (a, dense_a), (b, dense_b) = (
        [np.asarray(nll, dtype=np.float64) for nll in pair] for pair in costs
    )
    return log_ratio(a - dense_a, b - dense_b, n_tokens, document, confidence, rounding)


def slope(
    nll: ArrayLike, x: ArrayLike, n_tokens: ArrayLike, document: ArrayLike, confidence: float
) -> Effect:
    """How fast the loss rises with x: nats per token, per unit of x.

    The least-squares slope of each document over the columns, as one number, is what is tested: so
    columns may be as alike within a document as they will. Where a test over columns takes them for
    exchangeable (Page's), likeness of neighbours makes it reject too often.

    Args:
        nll: (blocks, columns) summed nats.
        x: (columns,) where each column lies.
        n_tokens, document, confidence: As for `log_ratio`.

    Raises:
        KeepsetError: shapes do not fit, x does not vary, or as `log_ratio`.
    """
    table, at = np.asarray(nll, dtype=np.float64), np.asarray(x, dtype=np.float64)
    if table.ndim != 2 or table.shape[1:] != at.shape or len(at) < 2 or np.ptp(at) == 0:
        raise KeepsetError(f"a slope needs blocks x columns, got {table.shape} at x = {at}")
    weights = (at - at.mean()) / ((at - at.mean()) ** 2).sum()
    contrast = table @ weights
    return log_ratio(contrast, np.zeros_like(contrast), n_tokens, document, confidence)


def rising(steps: Sequence[Effect], first_to_last: Effect) -> Effect:
    """Whether an effect rises with every step of an ordered factor.

    For it: the largest p of a rise over the steps, an intersection-union test. Against it: the
    smallest p of a fall at one step, times the number of steps (Bonferroni). Both are against 0.

    Args:
        steps: The effect of each step on the one before.
        first_to_last: The effect of the last step on the first, which gives the estimate.

    Raises:
        KeepsetError: there is no step.
    """
    if not steps:
        raise KeepsetError("a rise needs one step or more")
    rise = float(np.max([step.greater(0.0) for step in steps]))
    fall = float(np.minimum(1.0, len(steps) * np.min([step.less(0.0) for step in steps])))
    return replace(
        first_to_last, test="t-test of every step", steps=tuple(steps),
        greater=lambda _: rise, less=lambda _: fall,
    )  # fmt: skip


def mean(values: ArrayLike, unit: str, confidence: float) -> Effect:
    """A mean of independent values: t interval and t-tests.

    Raises:
        KeepsetError: there is no value, or one is not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or len(x) == 0 or not np.isfinite(x).all():
        raise KeepsetError(f"a mean over {unit}s needs finite values, got {x}")
    # Equal values have a spread of exactly 0, whatever the rounding of their mean.
    spread = math.nan if len(x) < 2 else float(x.std(ddof=1)) if np.ptp(x) else 0.0
    return t_effect(
        float(x.mean()), spread / math.sqrt(len(x)), len(x) - 1, confidence,
        n=len(x), unit=unit, test="t-test",
    )  # fmt: skip


def difference(a: Estimate, b: Estimate, confidence: float, *, n: int, unit: str) -> Effect:
    """Difference of two independent estimates: Welch's interval and tests.

    Args:
        a, b: Estimates of different items, such as text of two corpora.
        confidence: Level of the interval.
        n, unit: As in `Effect`.
    """
    error, df = _satterthwaite((a.error**2, a.df), (b.error**2, b.df))
    return t_effect(a.value - b.value, error, df, confidence, n=n, unit=unit, test="Welch's t-test")


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


def lost_accuracy(costs: Sequence[tuple[ArrayLike, ArrayLike]], confidence: float) -> Effect:
    """How much less accuracy one model loses to a setting than another, on the same items.

    The mean over items of (correct - dense) of the one less that of the other: t-tests.

    Args:
        costs: Of the one and of the other model: (n,) correct under the setting, and dense.
        confidence: Level of the interval.

    Raises:
        KeepsetError: lengths differ, or there is no item.
    """
    answers = [np.asarray(correct, dtype=np.float64) for pair in costs for correct in pair]
    if len({correct.shape for correct in answers}) != 1:
        raise KeepsetError("the same items are needed of both models; run both tasks again")
    here, dense, other, other_dense = answers
    return replace(
        mean((here - dense) - (other - other_dense), "item", confidence), test="paired t-test"
    )


def unsampled(estimate: float, unit: str = "run") -> Effect:
    """A quantity that is measured and not sampled, such as a peak of memory: no interval, no p."""
    return Effect(
        estimate, math.nan, math.nan, 0.0, 1, unit, "measured",
        lambda bound: float(estimate <= bound), lambda bound: float(estimate >= bound),
    )  # fmt: skip

"""A measured effect, and where a claim says that it lies: what a verdict rests on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from scipy import stats as scipy_stats

from keepset.analyse.stats import POWER


@dataclass(frozen=True)
class Effect:
    """A measured effect, its interval, and its tests against a bound.

    Attributes:
        estimate: The effect; a log ratio, a difference, a correlation or a share.
        low: Lower end of its interval, NaN where it is not known.
        high: Upper end.
        error: Its standard error; 0 where the effect is measured and not sampled.
        n: Items that it rests on.
        unit: What an item is: block, item, layer or neuron.
        test: The test's name, for readers.
        greater: bound -> p of "the effect is the bound or less".
        less: bound -> p of "the effect is the bound or more".
    """

    estimate: float
    low: float
    high: float
    error: float
    n: int
    unit: str
    test: str
    greater: Callable[[float], float]
    less: Callable[[float], float]


@dataclass(frozen=True)
class Bounds:
    """Where an effect has to lie for a claim to hold: low < effect < high."""

    low: float = -math.inf
    high: float = math.inf

    def p_for(self, effect: Effect) -> float:
        """p of "the claim is false": the larger of the one-sided p of each end.

        With both ends this is TOST (Schuirmann 1987), an intersection-union test.
        """
        ends = [effect.greater(self.low)] if math.isfinite(self.low) else []
        ends += [effect.less(self.high)] if math.isfinite(self.high) else []
        return max(ends)

    def p_against(self, effect: Effect) -> float:
        """p of "the claim is true": the smaller of the one-sided p, doubled where both ends are."""
        ends = [effect.less(self.low)] if math.isfinite(self.low) else []
        ends += [effect.greater(self.high)] if math.isfinite(self.high) else []
        return min(1.0, len(ends) * min(ends))


def needed(effect: Effect, bounds: Bounds, alpha: float) -> float:
    """Items that would decide with a chance of 0.8, if the effect is as large as measured.

    Normal approximation.

    Args:
        effect: What was measured; its standard error shrinks with the root of n.
        bounds: Where the claim says it lies.
        alpha: One-sided level.

    Returns:
        Whole items, more than there are; infinite where the effect lies on a bound, NaN where
        the standard error is not known.
    """
    distance = min(abs(effect.estimate - end) for end in (bounds.low, bounds.high))
    if not math.isfinite(effect.error) or not math.isfinite(distance):
        return math.nan
    if distance == 0:
        return math.inf
    z_alpha, z_power = scipy_stats.norm.ppf([1 - alpha, POWER])
    n = effect.n * ((z_alpha + z_power) * effect.error / distance) ** 2
    return float(max(math.ceil(n), effect.n + 1))

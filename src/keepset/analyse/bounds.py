"""A measured effect, and where a claim says that it lies: what a verdict rests on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats as scipy_stats

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
        unit: What an item is: document, item or neuron.
        test: The test's name, for readers.
        greater: bound -> p of "the effect is the bound or less".
        less: bound -> p of "the effect is the bound or more".
        floor: The part of the standard error that more items do not lower: rounding.
        limit: The most items that can be had.
        steps: Effects that have to hold together, where the tests are over several.
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
    floor: float = 0.0
    limit: float = math.inf
    steps: tuple[Effect, ...] = ()


@dataclass(frozen=True)
class Bounds:
    """Where an effect has to lie for a claim to hold: low < effect < high."""

    low: float = -math.inf
    high: float = math.inf

    def contain(self, estimate: float) -> bool:
        """Whether an estimate lies where the claim says; not on a bound."""
        return self.low < estimate < self.high

    @property
    def ends(self) -> int:
        """How many ends are finite."""
        return math.isfinite(self.low) + math.isfinite(self.high)

    def p_for(self, effect: Effect) -> float:
        """p of "the claim is false": the larger of the one-sided p of each end.

        With both ends this is TOST (Schuirmann 1987), an intersection-union test. NaN where an
        end's p is.
        """
        p = [effect.greater(self.low)] if math.isfinite(self.low) else []
        p += [effect.less(self.high)] if math.isfinite(self.high) else []
        return float(np.max(p))

    def p_against(self, effect: Effect) -> float:
        """p of "the claim is true": the smaller of the one-sided p, doubled where both ends are."""
        p = [effect.less(self.low)] if math.isfinite(self.low) else []
        p += [effect.greater(self.high)] if math.isfinite(self.high) else []
        return float(np.minimum(1.0, len(p) * np.min(p)))


class Needed(NamedTuple):
    """Items that would decide; where none would, infinite (NaN: not known), and why in words."""

    n: float
    why: str = ""


def needed(effect: Effect, bounds: Bounds, alpha: float) -> Needed:
    """Items that would decide with a chance of 0.8, if the effect is as large as measured.

    Normal approximation. Where the estimate lies within the bounds, the chance is that of the claim
    to be shown: of both one-sided tests together where it has two ends. Where it lies outside, the
    chance is that of the claim to be refuted: of either test, each at half the level where there
    are two. The effect's `floor` does not shrink with more items. Of `steps`, all have to be shown,
    or one has to be refuted at the level over their number.

    Args:
        effect: What was measured; the rest of its standard error shrinks with the root of n.
        bounds: Where the claim says it lies.
        alpha: One-sided level: the one that decides, after any adjustment.

    Returns:
        Whole items, more than there are. `why` is set where no number that can be had decides.
    """
    if effect.steps:
        if all(bounds.contain(step.estimate) for step in effect.steps):
            return max(needed(step, bounds, alpha) for step in effect.steps)
        level = alpha / len(effect.steps)
        against = [step for step in effect.steps if not bounds.contain(step.estimate)]
        return min(needed(step, bounds, level) for step in against)
    if not (math.isfinite(effect.error) and math.isfinite(effect.estimate)):
        return Needed(math.nan, f"its error is not known from {effect.n} {effect.unit}")
    if effect.estimate in (bounds.low, bounds.high):
        return Needed(math.inf, "the effect lies on the bound: no number would decide")
    sampled = math.sqrt(max(effect.error**2 - effect.floor**2, 0.0))

    def surplus(log_n: float) -> float:
        error = math.hypot(sampled * math.sqrt(effect.n / math.exp(log_n)), effect.floor)
        return _power(effect.estimate, error, bounds, alpha) - POWER

    fewest, most = math.log(effect.n + 1), math.log(effect.n + 1) + 80.0
    if surplus(most) < 0:
        why = "rounding alone is too large for the bound: no text would decide, a wider dtype may"
        return Needed(math.inf, why)
    n = effect.n + 1.0
    if surplus(fewest) < 0:
        # A root that is whole up to rounding is that whole number.
        n = float(math.ceil(math.exp(optimize.brentq(surplus, fewest, most, xtol=1e-12)) - 1e-6))
    if n > effect.limit:
        why = f"{n:.0f} {effect.unit}s would decide, and only {effect.limit:.0f} can be had"
        return Needed(math.inf, why)
    return Needed(n)


def _power(estimate: float, error: float, bounds: Bounds, alpha: float) -> float:
    """The chance that normal tests at `alpha` decide the way the estimate points."""
    if error == 0:
        return 1.0
    above, below = (estimate - bounds.low) / error, (bounds.high - estimate) / error
    if bounds.contain(estimate):
        z = scipy_stats.norm.isf(alpha)
        return float(scipy_stats.norm.cdf(below - z) - scipy_stats.norm.sf(above - z))
    z = scipy_stats.norm.isf(alpha / bounds.ends)
    return float(scipy_stats.norm.cdf(-above - z) + scipy_stats.norm.cdf(-below - z))

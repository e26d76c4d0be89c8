from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats as scipy_stats

from keepset.analyse import effects
from keepset.analyse.bounds import Bounds, needed


class TestNeeded:
    def test_agrees_with_the_textbook(self):
        # One-sided test of a mean, difference half a standard deviation, level 0.05, power 0.8:
        # ((1.645 + 0.842) / 0.5)^2 = 24.7 (Chow, Shao, Wang, Sample Size Calculations, ch. 3).
        rng = np.random.default_rng(0)
        x = rng.normal(size=9)
        x = 0.5 + (x - x.mean()) / x.std(ddof=1)
        effect = effects.mean(x, "layer", 0.95)
        assert needed(effect, Bounds(0.0), 0.05) == 25

    def test_is_more_than_there_are(self):
        effect = effects.mean(np.linspace(0.9, 1.1, 50), "layer", 0.95)
        assert needed(effect, Bounds(0.0), 0.05) == 51

    def test_on_the_bound_nothing_decides(self):
        effect = effects.mean([1.0, 2.0, 3.0], "layer", 0.95)
        assert math.isinf(needed(effect, Bounds(2.0), 0.05))

    def test_unknown_error(self):
        assert math.isnan(needed(effects.mean([1.0], "layer", 0.95), Bounds(0.0), 0.05))

    def test_simulated_power(self):
        rng = np.random.default_rng(5)
        pilot = replace(effects.mean(rng.normal(size=10), "layer", 0.95), estimate=0.4, error=0.3)
        n = int(needed(pilot, Bounds(0.0), 0.05))
        samples = rng.normal(0.4, 0.3 * math.sqrt(10), size=(2000, n))
        p = scipy_stats.ttest_1samp(samples, 0, axis=1, alternative="greater").pvalue
        assert (p < 0.05).mean() == pytest.approx(0.8, abs=0.04)


class TestBounds:
    @given(st.floats(-2, 2), st.floats(-1, 0), st.floats(0.1, 1))
    def test_for_and_against_never_both(self, shift, low, high):
        effect = effects.mean(np.linspace(-0.3, 0.3, 9) + shift, "layer", 0.95)
        for bounds in (Bounds(low, high), Bounds(low=low), Bounds(high=high)):
            assert bounds.p_for(effect) + bounds.p_against(effect) > 0.9

    def test_measured_is_not_sampled(self):
        effect = effects.unsampled(0.2)
        assert effect.test == "measured"
        assert Bounds(high=1 / 3).p_for(effect) == 0
        assert Bounds(high=0.1).p_for(effect) == 1

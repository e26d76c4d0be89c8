from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats as scipy_stats

from keepset.analyse import effects
from keepset.analyse.bounds import Bounds, Effect, needed


def effect(estimate: float, error: float, n: int = 16, **options: float) -> Effect:
    measured = effects.t_effect(estimate, error, n - 1, 0.95, n=n, unit="document", test="t-test")
    return replace(measured, **options)


def error_for(n: int, distance: float, now: int = 16, power: float = 0.8) -> float:
    """The error now, if n items are just enough for a one-sided test over a distance at 0.05."""
    z = scipy_stats.norm.ppf(0.95) + scipy_stats.norm.ppf(power)
    return distance / z * math.sqrt((n - 0.1) / now)


class TestNeeded:
    def test_agrees_with_the_textbook(self):
        # One-sided test of a mean, difference half a standard deviation, level 0.05, power 0.8:
        # ((1.645 + 0.842) / 0.5)^2 = 24.7 (Chow, Shao, Wang, Sample Size Calculations, ch. 3).
        rng = np.random.default_rng(0)
        x = rng.normal(size=9)
        x = 0.5 + (x - x.mean()) / x.std(ddof=1)
        measured = effects.mean(x, "item", 0.95)
        assert needed(measured, Bounds(0.0), 0.05) == (25, "")

    @pytest.mark.parametrize(("one_test", "both_tests"), [(25, 35), (69, 96), (155, 215)])
    def test_sameness_asks_for_both_tests(self, one_test, both_tests):
        measured = effect(0.0, error_for(one_test, 0.01))
        assert needed(measured, Bounds(-0.01, 0.01), 0.05).n == both_tests

    def test_simulated_power_of_sameness(self):
        measured = effect(0.0, error_for(69, 0.01))
        n = int(needed(measured, Bounds(-0.01, 0.01), 0.05).n)
        spread = measured.error * math.sqrt(measured.n)
        samples = np.random.default_rng(3).normal(0.0, spread, size=(4000, n))
        ends = [
            scipy_stats.ttest_1samp(samples, bound, axis=1, alternative=tail).pvalue
            for bound, tail in ((-0.01, "greater"), (0.01, "less"))
        ]
        assert (np.maximum(*ends) < 0.05).mean() == pytest.approx(0.8, abs=0.03)

    def test_off_centre_lies_between(self):
        measured = effect(0.004, error_for(69, 0.006))
        n = needed(measured, Bounds(-0.01, 0.01), 0.05).n
        assert 69 <= n < 96

    def test_the_adjusted_level_asks_for_more(self):
        measured = effect(0.5, error_for(73, 0.5))
        assert needed(measured, Bounds(0.0), 0.05).n == 73
        assert needed(measured, Bounds(0.0), 0.0126).n == pytest.approx(112, abs=1)

    def test_outside_of_two_bounds_either_refutes_at_half_the_level(self):
        measured = effect(0.02, error_for(73, 0.01))
        z = scipy_stats.norm.isf([0.025, 0.2]).sum()
        expected = math.ceil(16 * (z * measured.error / 0.01) ** 2)
        assert needed(measured, Bounds(-0.01, 0.01), 0.05).n == expected

    def test_is_more_than_there_are(self):
        measured = effects.mean(np.linspace(0.9, 1.1, 50), "item", 0.95)
        assert needed(measured, Bounds(0.0), 0.05).n == 51

    def test_on_the_bound_nothing_decides(self):
        n, why = needed(effects.mean([1.0, 2.0, 3.0], "item", 0.95), Bounds(2.0), 0.05)
        assert math.isinf(n)
        assert "lies on the bound" in why

    def test_unknown_error(self):
        n, why = needed(effects.mean([1.0], "document", 0.95), Bounds(0.0), 0.05)
        assert math.isnan(n)
        assert why == "its error is not known from 1 document"

    def test_rounding_that_no_text_lowers(self):
        bounds, z = Bounds(-0.01, 0.01), scipy_stats.norm.ppf([0.95, 0.9]).sum()
        just_too_large, just_small_enough = 0.01 / z * 1.01, 0.01 / z * 0.95
        n, why = needed(effect(0.0, 0.01, floor=just_too_large), bounds, 0.05)
        assert math.isinf(n)
        assert "no text would decide" in why
        without = needed(effect(0.0, 0.01), bounds, 0.05).n
        assert without < needed(effect(0.0, 0.01, floor=just_small_enough), bounds, 0.05).n < 1e4

    def test_what_cannot_be_had_is_said(self):
        measured = effect(0.5, error_for(73, 0.5), limit=64, unit="neuron")
        n, why = needed(measured, Bounds(0.0), 0.05)
        assert math.isinf(n)
        assert why == "73 neurons would decide, and only 64 can be had"

    def test_all_steps_have_to_be_shown(self):
        steps = [effect(0.5, error_for(n, 0.5)) for n in (30, 73, 20)]
        assert needed(effects.rising(steps, steps[0]), Bounds(0.0), 0.05).n == 73

    def test_one_falling_step_is_enough_against(self):
        steps = [effect(0.5, error_for(30, 0.5)), effect(-0.5, error_for(73, 0.5))]
        got = needed(effects.rising(steps, steps[0]), Bounds(0.0), 0.05).n
        assert got == needed(steps[1], Bounds(0.0), 0.025).n > 73

    def test_simulated_power(self):
        rng = np.random.default_rng(5)
        pilot = effect(0.4, 0.3, n=10)
        n = int(needed(pilot, Bounds(0.0), 0.05).n)
        samples = rng.normal(0.4, 0.3 * math.sqrt(10), size=(2000, n))
        p = scipy_stats.ttest_1samp(samples, 0, axis=1, alternative="greater").pvalue
        assert (p < 0.05).mean() == pytest.approx(0.8, abs=0.04)


class TestBounds:
    @given(st.floats(-2, 2), st.floats(-1, 0), st.floats(0.1, 1))
    def test_for_and_against_never_both(self, shift, low, high):
        measured = effects.mean(np.linspace(-0.3, 0.3, 9) + shift, "item", 0.95)
        for bounds in (Bounds(low, high), Bounds(low=low), Bounds(high=high)):
            assert bounds.p_for(measured) + bounds.p_against(measured) > 0.9

    @pytest.mark.parametrize("unknown", ["greater", "less"])
    def test_an_unknown_p_at_either_end_stays_unknown(self, unknown):
        measured = effect(0.0, 0.1, **{unknown: lambda _: math.nan})
        assert math.isnan(Bounds(-1.0, 1.0).p_for(measured))
        assert math.isnan(Bounds(-1.0, 1.0).p_against(measured))

    def test_a_bound_is_not_within(self):
        assert not Bounds(0.0, 1.0).contain(0.0)
        assert Bounds(0.0, 1.0).contain(0.5)
        assert not Bounds(high=1.0).contain(1.0)

    def test_measured_is_not_sampled(self):
        measured = effects.unsampled(0.2)
        assert measured.test == "measured"
        assert Bounds(high=1 / 3).p_for(measured) == 0
        assert Bounds(high=0.1).p_for(measured) == 1

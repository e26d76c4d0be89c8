from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from keepset.analyse import accuracies, effects, perplexities
from keepset.analyse.bounds import Bounds
from keepset.analyse.stats import Sampling
from keepset.errors import KeepsetError

FAST = Sampling(0.95, 499, 3)
RNG = np.random.default_rng(0)
N = RNG.integers(100, 200, size=30)
B = N * RNG.normal(3, 0.2, size=30)
A = B + N * RNG.normal(0.2, 0.1, size=30)


def right(only_a: int, only_b: int, both: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = [only_a, only_b, both, neither]
    return np.repeat([1, 0, 1, 0], counts) == 1, np.repeat([0, 1, 1, 0], counts) == 1


class TestLogRatio:
    effect = effects.log_ratio(A, B, N, FAST)

    def test_is_the_paired_ratio(self):
        expected = perplexities.paired_ratio(A, B, N, FAST)
        assert np.exp([self.effect.estimate, self.effect.low, self.effect.high]) == pytest.approx(
            [expected.ratio, expected.low, expected.high]
        )
        assert 2 * self.effect.greater(0) == pytest.approx(expected.p)

    @pytest.mark.parametrize("bound", [-0.1, 0.15, 0.3])
    def test_t_tests_agree_with_scipy(self, bound):
        terms = (A - B) / N.mean()
        for tail, p in (("greater", self.effect.greater), ("less", self.effect.less)):
            expected = scipy_stats.ttest_1samp(terms, bound, alternative=tail).pvalue
            assert p(bound) == pytest.approx(expected, rel=1e-9)

    def test_tost_is_a_pair_of_bounds(self):
        margin = math.log(1.3)
        expected = perplexities.tost_ratio(A, B, N, 0.3)
        assert Bounds(-margin, margin).p_for(self.effect) == pytest.approx(expected)

    def test_where_nothing_varies(self):
        same = effects.log_ratio([20.0, 20.0], [10.0, 10.0], [10, 10], FAST)
        assert (same.greater(0.5), same.less(0.5), same.greater(1.0), same.less(1.0)) == (
            0,
            1,
            1,
            1,
        )
        assert same.error == 0

    def test_one_block(self):
        assert math.isnan(effects.log_ratio([2.0], [1.0], [1], FAST).greater(0))


class TestCorrelations:
    a, b = RNG.normal(0.3, 0.1, size=(2, 12))

    def test_mean_over_layers(self):
        effect = effects.mean(self.a, "layer", 0.95)
        expected = scipy_stats.ttest_1samp(self.a, 0.0)
        interval = expected.confidence_interval(0.95)
        assert (effect.low, effect.high) == pytest.approx((interval.low, interval.high))
        assert effect.less(0.4) == pytest.approx(
            scipy_stats.ttest_1samp(self.a, 0.4, alternative="less").pvalue
        )
        assert effect.error == pytest.approx(scipy_stats.sem(self.a))

    def test_difference_is_paired_by_layer(self):
        effect = effects.correlation_difference(self.a, self.b, FAST)
        assert effect.greater(0.02) == pytest.approx(
            scipy_stats.ttest_rel(self.a, self.b + 0.02, alternative="greater").pvalue
        )
        # A BCa interval of a mean is close to the t interval, only a little narrower.
        t = scipy_stats.ttest_rel(self.a, self.b).confidence_interval(0.95)
        assert (effect.low, effect.high) == pytest.approx(
            (t.low, t.high), abs=0.2 * (t.high - t.low)
        )

    def test_same_difference_everywhere(self):
        effect = effects.correlation_difference([0.5, 0.25], [0.25, 0.0], FAST)
        assert (effect.low, effect.estimate, effect.high) == (0.25, 0.25, 0.25)

    def test_other_layers(self):
        with pytest.raises(KeepsetError, match="same layers"):
            effects.correlation_difference([0.1, 0.2], [0.1], FAST)

    def test_nothing_to_average(self):
        with pytest.raises(KeepsetError, match="finite"):
            effects.mean([0.1, np.nan], "layer", 0.95)


class TestMeanDifference:
    def test_agrees_with_scipy(self):
        x, y = RNG.normal(1, 1, size=20), RNG.normal(0.5, 3, size=12)
        effect = effects.mean_difference(x, y, "block", 0.95)
        test = scipy_stats.ttest_ind(x, y, equal_var=False, alternative="less")
        interval = scipy_stats.ttest_ind(x, y, equal_var=False).confidence_interval(0.95)
        assert effect.less(0) == pytest.approx(test.pvalue)
        assert (effect.low, effect.high) == pytest.approx((interval.low, interval.high))

    def test_one_value_has_no_test(self):
        assert math.isnan(effects.mean_difference([1.0], [2.0, 3.0], "item", 0.95).less(0))


class TestAccuracyDifference:
    def test_against_zero_it_is_mcnemars(self):
        a, b = right(6, 16, 59, 80)
        effect = effects.accuracy_difference(a, b, 0.95)
        assert 2 * effect.less(0) == pytest.approx(accuracies.mcnemar_exact(a, b).p)
        assert (effect.low, effect.high) == accuracies.paired_difference(a, b, 0.95)

    def test_margins_are_tost(self):
        a, b = right(3, 5, 200, 92)
        effect = effects.accuracy_difference(a, b, 0.95)
        assert Bounds(-0.05, 0.05).p_for(effect) == accuracies.tost_accuracy(a, b, 0.05)

    def test_nothing_changed(self):
        effect = effects.accuracy_difference(*right(0, 0, 200, 100), 0.95)
        assert effect.less(0) == effect.greater(0) == 1.0
        assert 0 < effect.error < 0.01


class TestRankGap:
    def test_the_better_ranker_is_found(self):
        rng = np.random.default_rng(1)
        truth = rng.random(64)
        layer = np.repeat(np.arange(4), 16)
        effect = effects.rank_correlation_gap(
            truth + 0.1 * rng.random(64), rng.random(64), truth + 9 * layer, layer, FAST
        )
        assert effect.greater(0) < 1e-4
        assert effect.less(0) > 0.99

    def test_is_the_mean_of_the_layers_spearman(self):
        rng = np.random.default_rng(2)
        x, y, z = rng.random((3, 40))
        layer = np.repeat([0, 1], 20)
        effect = effects.rank_correlation_gap(x, y, z, layer, FAST)
        by_layer = [
            scipy_stats.spearmanr(x[own], z[own]).statistic
            - scipy_stats.spearmanr(y[own], z[own]).statistic
            for own in (layer == 0, layer == 1)
        ]
        assert effect.estimate == pytest.approx(np.mean(by_layer))
        assert effect.low < effect.estimate < effect.high

    def test_two_units(self):
        with pytest.raises(KeepsetError, match="three units"):
            effects.rank_correlation_gap([1, 2], [1, 2], [1, 2], [0, 0], FAST)


class TestRising:
    def rising(self, slope):
        rng = np.random.default_rng(4)
        loss = pd.DataFrame(rng.normal(size=(12, 1)) + np.array(slope) + 0.1 * rng.random((12, 4)))
        return effects.rising(loss, effects.unsampled(0.0))

    def test_a_rise(self):
        effect = self.rising([0, 1, 2, 3])
        assert effect.greater(0) < 1e-6
        assert effect.less(0) == 1.0

    def test_one_step_down(self):
        effect = self.rising([0, 2, 1, 3])
        assert effect.greater(0) < 1e-3
        assert effect.less(0) < 1e-6

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.weightstats import ttost_paired

from keepset.analyse import accuracies, effects
from keepset.analyse.bounds import Bounds
from keepset.analyse.perplexities import Estimate, Rounding
from keepset.errors import KeepsetError

RNG = np.random.default_rng(0)
N = RNG.integers(100, 200, size=30)
B = N * RNG.normal(3, 0.2, size=30)
A = B + N * RNG.normal(0.2, 0.1, size=30)


def right(only_a: int, only_b: int, both: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = [only_a, only_b, both, neither]
    return np.repeat([1, 0, 1, 0], counts) == 1, np.repeat([0, 1, 1, 0], counts) == 1


class TestLogRatio:
    documents = np.repeat(np.arange(10), 3)
    effect = effects.log_ratio(A, B, N, documents, 0.95)

    def test_is_the_ratio_of_perplexities(self):
        expected = np.exp(A.sum() / N.sum()) / np.exp(B.sum() / N.sum())
        assert math.exp(self.effect.estimate) == pytest.approx(expected)
        assert (self.effect.n, self.effect.unit) == (10, "document")

    @pytest.mark.parametrize("bound", [-0.1, 0.15, 0.3])
    def test_documents_of_one_length_are_tested_as_scipy_does(self, bound):
        a, b = A / N, B / N
        effect = effects.log_ratio(a, b, np.ones(30), self.documents, 0.9)
        means = (a - b).reshape(10, 3).mean(axis=1)
        for tail, p in (("greater", effect.greater), ("less", effect.less)):
            expected = scipy_stats.ttest_1samp(means, bound, alternative=tail)
            assert p(bound) == pytest.approx(expected.pvalue, rel=1e-9)
        interval = scipy_stats.ttest_1samp(means, 0).confidence_interval(0.9)
        assert (effect.low, effect.high) == pytest.approx(tuple(interval), rel=1e-9)
        assert effects.two_sided(effect) == pytest.approx(
            scipy_stats.ttest_1samp(means, 0).pvalue, rel=1e-9
        )

    def test_interval_is_that_of_the_formula(self):
        # Written out with numpy alone, as an outsider would.
        delta, tokens = A - B, N.astype(float)
        theta = delta.sum() / tokens.sum()
        e = [(delta - theta * tokens)[self.documents == d].sum() for d in range(10)]
        error = math.sqrt(10 / 9 * np.square(e).sum()) / tokens.sum()
        half = scipy_stats.t.ppf(0.975, 9) * error
        assert (self.effect.low, self.effect.high) == pytest.approx(
            (theta - half, theta + half), rel=1e-12
        )

    def test_sameness_is_a_pair_of_tests(self):
        margin = math.log(1.3)
        a, b = A / N, B / N
        effect = effects.log_ratio(a, b, np.ones(30), np.arange(30), 0.95)
        expected = ttost_paired(a, b, -margin, margin)[0]
        assert Bounds(-margin, margin).p_for(effect) == pytest.approx(expected, rel=1e-9)

    def test_swapping_inverts(self):
        back = effects.log_ratio(B, A, N, self.documents, 0.95)
        assert (back.low, back.high) == pytest.approx((-self.effect.high, -self.effect.low))

    def test_where_nothing_varies(self):
        same = effects.log_ratio([20.0, 20.0], [10.0, 10.0], [10, 10], [0, 1], 0.95)
        got = (same.greater(0.5), same.less(0.5), same.greater(1.0), same.less(1.0))
        assert got == (0, 1, 1, 1)
        assert (same.low, same.high, same.error) == (1.0, 1.0, 0)

    def test_identical_settings_are_the_same_within_any_margin(self):
        same = effects.log_ratio(B, B, N, self.documents, 0.95)
        assert effects.two_sided(same) == 1.0
        assert Bounds(-1e-6, 1e-6).p_for(same) == 0.0

    def test_many_blocks_of_one_document_have_no_interval(self):
        effect = effects.log_ratio(A, B, N, np.zeros(30), 0.95)
        assert effect.n == 1
        known = [effect.low, effect.high, effect.greater(0), effect.less(0), effect.error]
        assert np.isnan(known).all()
        assert math.isnan(effects.two_sided(effect))

    def test_blocks_that_do_not_fit(self):
        with pytest.raises(KeepsetError, match="same blocks"):
            effects.log_ratio([1.0], [1.0, 2.0], [1, 1], [0, 1], 0.95)


class TestRounding:
    blocks = (A, B, N, np.arange(30))
    text = effects.log_ratio(*blocks, 0.95)

    def test_variances_add_up_with_satterthwaites_degrees_of_freedom(self):
        rounding = [Rounding(4e-5, 2), Rounding(1e-5, 4)]
        effect = effects.log_ratio(*self.blocks, 0.95, rounding)
        variances, df = [self.text.error**2, 4e-5, 1e-5], [29, 2, 4]
        total = sum(variances)
        expected = total**2 / sum(v**2 / d for v, d in zip(variances, df, strict=True))
        assert effect.error == pytest.approx(math.sqrt(total))
        assert effect.floor == pytest.approx(math.sqrt(5e-5))
        p = scipy_stats.t.sf((effect.estimate - 0.1) / math.sqrt(total), expected)
        assert effect.greater(0.1) == pytest.approx(p, rel=1e-12)
        half = scipy_stats.t.ppf(0.975, expected) * math.sqrt(total)
        assert effect.high - effect.estimate == pytest.approx(half, rel=1e-12)

    def test_none_leaves_the_text_alone(self):
        effect = effects.log_ratio(*self.blocks, 0.95, [Rounding(0.0, 2)])
        assert (effect.low, effect.error) == pytest.approx((self.text.low, self.text.error))

    def test_rounding_alone(self):
        effect = effects.log_ratio(A, A, N, np.arange(30), 0.95, [Rounding(1e-4, 2)])
        assert effect.greater(-0.01) == pytest.approx(scipy_stats.t.sf(1, 2))


class TestRatioOfRatios:
    def test_is_paired_by_block(self):
        # A block that is hard for both models says nothing about their difference.
        hard = RNG.normal(0, 30, size=30)
        costs = [(A + hard, B), (A + hard - 0.1 * N, B)]
        effect = effects.ratio_of_ratios(costs, N, np.arange(30), 0.95)
        assert effect.estimate == pytest.approx(0.1)
        assert effect.greater(0.09) < 1e-9

    def test_of_equal_blocks_is_the_paired_t_test(self):
        a, b, c, d = RNG.normal(3, 1, size=(4, 12))
        effect = effects.ratio_of_ratios([(a, b), (c, d)], np.ones(12), np.arange(12), 0.95)
        expected = scipy_stats.ttest_rel(a - b, c - d, alternative="less").pvalue
        assert effect.less(0.0) == pytest.approx(expected, rel=1e-9)


class TestMean:
    values = RNG.normal(0.3, 0.1, size=12)

    def test_agrees_with_scipy(self):
        effect = effects.mean(self.values, "item", 0.95)
        interval = scipy_stats.ttest_1samp(self.values, 0.0).confidence_interval(0.95)
        assert (effect.low, effect.high) == pytest.approx((interval.low, interval.high))
        assert effect.less(0.4) == pytest.approx(
            scipy_stats.ttest_1samp(self.values, 0.4, alternative="less").pvalue
        )
        assert effect.error == pytest.approx(scipy_stats.sem(self.values))

    def test_equal_values_are_the_truth(self):
        effect = effects.mean([0.1] * 7, "item", 0.95)
        assert (effect.error, effect.low, effect.high) == (0.0, effect.estimate, effect.estimate)

    def test_nothing_to_average(self):
        with pytest.raises(KeepsetError, match="finite"):
            effects.mean([0.1, np.nan], "item", 0.95)


class TestDifference:
    x, y = RNG.normal(1, 1, size=20), RNG.normal(0.5, 3, size=12)

    def test_agrees_with_welch(self):
        sides = [Estimate(v.mean(), scipy_stats.sem(v), len(v) - 1) for v in (self.x, self.y)]
        effect = effects.difference(*sides, 0.95, n=12, unit="document")
        test = scipy_stats.ttest_ind(self.x, self.y, equal_var=False)
        less = scipy_stats.ttest_ind(self.x, self.y, equal_var=False, alternative="less")
        assert effect.less(0) == pytest.approx(less.pvalue)
        interval = test.confidence_interval(0.95)
        assert (effect.low, effect.high) == pytest.approx((interval.low, interval.high))

    def test_an_unknown_error_stays_unknown(self):
        known, unknown = Estimate(0.3, 0.1, 5), Estimate(0.2, math.nan, 0)
        effect = effects.difference(known, unknown, 0.95, n=1, unit="document")
        assert effect.estimate == pytest.approx(0.1)
        assert np.isnan([effect.low, effect.high, effect.less(0), effect.greater(0)]).all()


class TestLostAccuracy:
    def test_is_the_paired_t_test_over_items(self):
        a, b, c, d = RNG.random((4, 60)) < np.array([[0.5], [0.9], [0.7], [0.8]])
        effect = effects.lost_accuracy([(a, b), (c, d)], 0.95)
        changes = (a.astype(int) - b, c.astype(int) - d)
        for tail, p in (("greater", effect.greater), ("less", effect.less)):
            expected = scipy_stats.ttest_rel(*changes, alternative=tail).pvalue
            assert p(0.0) == pytest.approx(expected, rel=1e-9)
        assert effect.estimate == pytest.approx((changes[0] - changes[1]).mean())

    def test_one_item_shows_little(self):
        kept = np.ones(240, dtype=bool)
        lost = kept.copy()
        lost[7] = False
        effect = effects.lost_accuracy([(kept, kept), (lost, kept)], 0.95)
        assert effect.estimate == pytest.approx(1 / 240)
        assert effect.greater(0.0) > 0.1

    def test_other_items(self):
        with pytest.raises(KeepsetError, match="same items"):
            effects.lost_accuracy([([1], [1]), ([1, 0], [1, 1])], 0.95)


def correlated(rng: np.random.Generator, rho: float, documents: int, windows: int) -> np.ndarray:
    """Loss without a trend, in which neighbouring windows are alike: (documents, windows)."""
    distance = np.abs(np.subtract.outer(np.arange(windows), np.arange(windows)))
    likeness = np.linalg.cholesky(rho**distance)
    return rng.normal(size=(documents, windows)) @ likeness.T


class TestSlope:
    doublings = np.arange(9.0)

    @pytest.mark.parametrize("rho", [0.5, 0.9, 0.99])
    def test_holds_its_size_where_windows_are_alike(self, rho):
        rng = np.random.default_rng(7)
        ones, documents = np.ones(16), np.arange(16)
        p = [
            effects.slope(correlated(rng, rho, 16, 9), self.doublings, ones, documents, 0.95)
            for _ in range(2000)
        ]
        size = np.mean([effect.greater(0.0) < 0.05 for effect in p])
        # Three standard errors of 2,000 tests. Page's test rejects .11, .17 and .18 of such.
        assert size == pytest.approx(0.05, abs=0.015)

    def test_is_the_least_squares_slope_of_documents(self):
        rng = np.random.default_rng(8)
        loss = rng.normal(size=(10, 9)) + 0.05 * self.doublings
        effect = effects.slope(255 * loss, self.doublings, [255] * 10, np.arange(10), 0.95)
        slopes = [scipy_stats.linregress(self.doublings, row).slope for row in loss]
        expected = scipy_stats.ttest_1samp(slopes, 0, alternative="greater")
        assert effect.estimate == pytest.approx(np.mean(slopes))
        assert effect.greater(0.0) == pytest.approx(expected.pvalue, rel=1e-9)

    @pytest.mark.parametrize("x", [[1, 2], [3, 3, 3]])
    def test_bad_columns(self, x):
        with pytest.raises(KeepsetError, match="slope needs"):
            effects.slope(np.zeros((4, 3)), x, np.ones(4), np.arange(4), 0.95)


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


class TestRising:
    def rising(self, levels):
        loss = np.random.default_rng(4).normal(size=(12, 1)) + np.array(levels)
        loss = loss + 0.1 * np.random.default_rng(5).random(loss.shape)
        steps = [
            effects.log_ratio(after, before, np.ones(12), np.arange(12), 0.95)
            for before, after in pairwise(loss.T)
        ]
        return effects.rising(steps, effects.unsampled(0.0)), np.diff(loss, axis=1).T

    def test_a_rise_is_as_sure_as_its_least_sure_step(self):
        effect, steps = self.rising([0, 1, 2, 3])
        p = [scipy_stats.ttest_1samp(step, 0, alternative="greater").pvalue for step in steps]
        assert effect.greater(0) == pytest.approx(max(p), rel=1e-9)
        assert max(p) < 1e-6
        assert effect.less(0) == 1.0

    def test_one_step_down_is_no_rise(self):
        effect, steps = self.rising([0, 2, 1, 3])
        fall = scipy_stats.ttest_1samp(steps[1], 0, alternative="less").pvalue
        assert effect.greater(0) > 0.999
        assert effect.less(0) == pytest.approx(3 * fall, rel=1e-9)
        assert fall < 1e-6

    def test_a_step_that_may_be_level_is_not_shown_to_rise(self):
        effect, _ = self.rising([0, 1, 1, 2])
        assert effect.greater(0) > 0.05
        assert effect.less(0) > 0.05

    def test_no_step(self):
        with pytest.raises(KeepsetError, match="one step"):
            effects.rising([], effects.unsampled(0.0))

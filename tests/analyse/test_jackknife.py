from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from keepset.analyse.jackknife import interval, jackknife, rank_gap
from keepset.errors import KeepsetError


def without_each(values, statistic):
    return [statistic(np.delete(values, place)) for place in range(len(values))]


class TestJackknife:
    values = np.random.default_rng(1).normal(3, 2, size=12)

    def test_of_a_mean_it_is_the_t_test(self):
        found = jackknife(self.values.mean(), without_each(self.values, np.mean))
        expected = scipy_stats.ttest_1samp(self.values, 0.0)
        assert found.error == pytest.approx(scipy_stats.sem(self.values))
        assert found.df == 11
        assert interval(found, 0.95) == pytest.approx(tuple(expected.confidence_interval(0.95)))

    def test_covers_a_correlation_of_clustered_units_as_often_as_it_says(self):
        """Groups of units are drawn together, as those of a document are."""
        rng = np.random.default_rng(2)
        # Spearman's coefficient of a normal pair with correlation r.
        truth = 6 / math.pi * math.asin(0.5 / math.sqrt(2 * 2.25) / 2)
        inside = []
        for _ in range(400):
            shift = rng.normal(size=(16, 2)) @ np.array([[1.0, 0.5], [0.0, 1.0]])
            x, y = np.moveaxis(shift[:, None] + rng.normal(size=(16, 30, 2)), -1, 0)

            def spearman(kept, x=x, y=y):
                return scipy_stats.spearmanr(x[kept].ravel(), y[kept].ravel()).statistic

            every = np.arange(16)
            low, high = interval(jackknife(spearman(every), without_each(every, spearman)), 0.95)
            inside.append(low < truth < high)
        assert 0.90 <= np.mean(inside) <= 0.98

    @pytest.mark.parametrize("left_out", [[], [0.5], [0.5, math.nan]])
    def test_has_no_error_of_one_part_or_of_what_is_not_known(self, left_out):
        found = jackknife(0.5, left_out)
        assert math.isnan(found.error)
        assert all(math.isnan(end) for end in interval(found, 0.95))


class TestRankGap:
    def test_the_better_ranker_is_found(self):
        rng = np.random.default_rng(1)
        truth = rng.random(64)
        layer = np.repeat(np.arange(4), 16)
        effect = rank_gap(
            truth + 0.1 * rng.random(64), rng.random(64), truth + 9 * layer, layer, 0.95
        )
        assert effect.greater(0) < 1e-4
        assert effect.less(0) > 0.99

    def test_is_the_mean_of_the_layers_spearman(self):
        rng = np.random.default_rng(2)
        x, y, z = rng.random((3, 40))
        layer = np.repeat([0, 1], 20)
        effect = rank_gap(x, y, z, layer, 0.95)
        by_layer = [
            scipy_stats.spearmanr(x[own], z[own]).statistic
            - scipy_stats.spearmanr(y[own], z[own]).statistic
            for own in (layer == 0, layer == 1)
        ]
        assert effect.estimate == pytest.approx(np.mean(by_layer))
        assert effect.low < effect.estimate < effect.high

    def test_leaves_units_out(self):
        x, y, z = np.random.default_rng(3).random((3, 12))
        layer = np.zeros(12, int)
        gaps = without_each(
            np.arange(12),
            lambda kept: rank_gap(x[kept], y[kept], z[kept], layer[kept], 0.95).estimate,
        )
        error = math.sqrt(11 / 12 * np.sum((gaps - np.mean(gaps)) ** 2))
        assert rank_gap(x, y, z, layer, 0.95).error == pytest.approx(error)

    def test_two_units(self):
        with pytest.raises(KeepsetError, match="three units"):
            rank_gap([1, 2], [1, 2], [1, 2], [0, 0], 0.95)

    def test_a_score_that_is_not_known(self):
        with pytest.raises(KeepsetError, match="finite"):
            rank_gap([1, 2, math.nan], [1, 2, 3], [1, 2, 3], [0, 0, 0], 0.95)

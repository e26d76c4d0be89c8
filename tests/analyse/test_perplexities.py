from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.weightstats import ttost_paired

from keepset.analyse import perplexities
from keepset.analyse.stats import Sampling
from keepset.errors import KeepsetError


def ratio(a, b, n, resamples=999, seed=0):
    return perplexities.paired_ratio(a, b, n, Sampling(0.95, resamples, seed))


class TestPairedRatio:
    rng = np.random.default_rng(1)
    n = rng.integers(100, 256, size=40)
    b = n * rng.normal(3.0, 0.3, size=40)
    a = b + n * rng.normal(0.1, 0.05, size=40)

    def test_ratio_and_t_test(self):
        got = ratio(self.a, self.b, self.n)
        assert got.ratio == pytest.approx(np.exp((self.a.sum() - self.b.sum()) / self.n.sum()))
        assert got.p == pytest.approx(scipy_stats.ttest_rel(self.a, self.b).pvalue)
        assert got.low < got.ratio < got.high

    def test_interval_near_the_delta_method(self):
        got = ratio(self.a, self.b, self.n, resamples=9999)
        residual = self.a - self.b - np.log(got.ratio) * self.n
        error = residual.std(ddof=1) * np.sqrt(40) / self.n.sum()
        expected = np.log(got.ratio) + error * scipy_stats.norm.ppf([0.025, 0.975])
        assert np.log([got.low, got.high]) == pytest.approx(expected, abs=error / 4)

    def test_swapping_inverts(self):
        there, back = ratio(self.a, self.b, self.n), ratio(self.b, self.a, self.n)
        assert there.ratio == pytest.approx(1 / back.ratio)
        assert there.low == pytest.approx(1 / back.high, rel=0.02)

    def test_same_seed_same_interval(self):
        assert ratio(self.a, self.b, self.n) == ratio(self.a, self.b, self.n)
        assert ratio(self.a, self.b, self.n).low != ratio(self.a, self.b, self.n, seed=5).low

    def test_identical_is_a_point(self):
        assert ratio(self.a, self.a, self.n) == (1.0, 1.0, 1.0, 1.0)

    def test_same_factor_everywhere_is_a_point(self):
        got = ratio([20.0, 40.0], [10.0, 20.0], [10, 20])
        assert got == (np.e, np.e, np.e, 0.0)

    def test_one_block_knows_no_spread(self):
        got = ratio([20.0], [10.0], [10])
        assert got.ratio == pytest.approx(np.e)
        assert np.isnan(got[1:]).all()

    def test_eight_huge_effects_survive_a_large_family(self):
        rng = np.random.default_rng(0)
        dense = rng.normal(700, 40, size=8)
        p = ratio(dense + rng.normal(1500, 150, size=8), dense, np.full(8, 255)).p
        assert p * 125 < 1e-4

    @pytest.mark.filterwarnings("error")
    def test_one_odd_block_gives_an_interval_without_warnings(self):
        b = np.full(10, 500.0)
        a = b.copy()
        a[0] += 1e-9
        got = ratio(a, b, np.full(10, 255))
        assert np.isfinite(got).all()

    @pytest.mark.parametrize(
        ("a", "n", "what"),
        [([1.0], [1, 1], "one length"), ([np.inf, 1.0], [1, 1], "finite"), ([1, 1], [0, 1], "one")],
    )
    def test_bad_blocks(self, a, n, what):
        with pytest.raises(KeepsetError, match=what):
            ratio(a, [1.0, 1.0], n)


class TestTostRatio:
    rng = np.random.default_rng(2)
    n = np.full(20, 255)
    b = rng.normal(700, 50, size=20)
    a = b + rng.normal(0, 1.5, size=20)

    def test_agrees_with_ttost_paired(self):
        expected = ttost_paired(self.a / 255, self.b / 255, -np.log(1.01), np.log(1.01))[0]
        assert perplexities.tost_ratio(self.a, self.b, self.n, 0.01) == pytest.approx(expected)
        assert expected < 0.05

    def test_a_large_change_is_not_the_same(self):
        assert perplexities.tost_ratio(self.a + 10, self.b, self.n, 0.01) > 0.95

    def test_degenerate(self):
        assert perplexities.tost_ratio(self.b, self.b, self.n, 0.01) == 0.0
        assert perplexities.tost_ratio(self.b + 255, self.b, self.n, 0.01) == 1.0
        assert np.isnan(perplexities.tost_ratio([1.0], [1.0], [1], 0.01))

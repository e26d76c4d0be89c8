from __future__ import annotations

import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.weightstats import ttost_paired

from keepset.analyse import ranks, stats
from keepset.errors import KeepsetError

COUNTS = st.tuples(*[st.integers(0, 30)] * 4).filter(lambda t: sum(t) > 0)


def pairs(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = [both, only_a, only_b, neither]
    return np.repeat([True, True, False, False], counts), np.repeat(
        [True, False, True, False], counts
    )


def ratio(a, b, n, **options):
    options = {"confidence": 0.95, "resamples": 999, "seed": 0} | options
    return stats.paired_ratio(a, b, n, **options)


class TestWilson:
    def test_newcombe_1998_example(self):
        # Newcombe, Statist. Med. 17 (1998) 857-872, table I: 81 of 263, method 3.
        assert stats.wilson(81, 263, 0.95) == pytest.approx((0.2553, 0.3662), abs=5e-5)

    def test_ends(self):
        assert stats.wilson(0, 20, 0.95) == pytest.approx((0.0, 0.1611), abs=5e-5)
        assert stats.wilson(20, 20, 0.95).high == pytest.approx(1.0)

    def test_no_items(self):
        assert np.isnan(stats.wilson(0, 0, 0.95)).all()


class TestHolm:
    def test_worked_example(self):
        assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
    @settings(max_examples=20)
    def test_agrees_with_statsmodels(self, p):
        assert stats.holm(p) == pytest.approx(multipletests(p, method="holm")[1])

    def test_unknown_do_not_count(self):
        got = stats.holm([0.02, np.nan, 0.03])
        assert got[[0, 2]] == pytest.approx([0.04, 0.04])
        assert np.isnan(got[1])

    def test_empty(self):
        assert stats.holm([]).shape == (0,)


class TestMcNemar:
    def test_agrees_with_the_binomial(self):
        got = stats.mcnemar_exact(*pairs(59, 6, 16, 80))
        assert got.p == pytest.approx(scipy_stats.binomtest(6, 22).pvalue)
        assert (got.only_a, got.only_b) == (6, 16)

    def test_published(self):
        # Fagerland, Lydersen, Laake, Statist. Med. 33 (2014): airway data, exact conditional.
        assert stats.mcnemar_exact(*pairs(1, 1, 7, 12)).p == pytest.approx(0.0703, abs=5e-5)

    def test_all_agree(self):
        assert stats.mcnemar_exact(*pairs(10, 0, 0, 5)).p == 1.0

    def test_no_items(self):
        assert np.isnan(stats.mcnemar_exact([], []).p)

    def test_unequal_lengths(self):
        with pytest.raises(KeepsetError, match="one length"):
            stats.mcnemar_exact([True], [True, False])


class TestPairedDifference:
    def test_airway_example(self):
        # Fagerland, Lydersen, Laake, Statist. Med. 33 (2014): Tango's interval.
        got = stats.paired_difference(*pairs(1, 1, 7, 12), 0.95)
        assert got == pytest.approx((-0.517, -0.026), abs=5e-4)

    def test_agrees_with_propcis(self):
        # R: PropCIs::scoreci.mp(25, 28, 618, 0.90), which takes the difference the other way.
        got = stats.paired_difference(*pairs(300, 28, 25, 265), 0.90)
        assert got == pytest.approx((-0.0148, 0.0247), abs=5e-5)

    def test_keeps_a_width_where_all_agree(self):
        # With no discordant pair the bound is z^2 / (n + z^2).
        z2 = scipy_stats.norm.ppf(0.975) ** 2
        got = stats.paired_difference(*pairs(200, 0, 0, 100), 0.95)
        assert got == pytest.approx((-z2 / (300 + z2), z2 / (300 + z2)))

    @pytest.mark.parametrize("counts", [(0, 5, 0, 0), (0, 0, 5, 0), (1, 0, 0, 0)])
    def test_ends(self, counts):
        low, high = stats.paired_difference(*pairs(*counts), 0.95)
        assert -1 <= low < high <= 1

    def test_no_items(self):
        assert np.isnan(stats.paired_difference([], [], 0.95)).all()

    @given(COUNTS)
    def test_mirrors_and_holds_the_estimate(self, counts):
        a, b = pairs(*counts)
        low, high = stats.paired_difference(a, b, 0.95)
        assert -1 <= low <= a.mean() - b.mean() <= high <= 1
        assert stats.paired_difference(b, a, 0.95) == pytest.approx((-high, -low), abs=1e-6)


class TestTostAccuracy:
    def test_tango_example(self):
        # Tango (1998), section 6: n = 44, one discordant pair, margin 0.1: Z = 1.709.
        got = stats.tost_accuracy(*pairs(43, 0, 1, 0), 0.1)
        assert got == pytest.approx(scipy_stats.norm.sf(1.709), abs=5e-5)

    @given(COUNTS, st.floats(0.01, 0.5))
    def test_is_the_interval_inside_the_margin(self, counts, margin):
        a, b = pairs(*counts)
        low, high = stats.paired_difference(a, b, 0.90)
        if min(abs(low + margin), abs(high - margin)) > 1e-6:
            inside = -margin < low and high < margin
            assert (stats.tost_accuracy(a, b, margin) < 0.05) == inside

    def test_few_items_prove_nothing(self):
        assert stats.tost_accuracy(*pairs(6, 0, 0, 4), 0.05) > 0.05

    def test_no_items(self):
        assert np.isnan(stats.tost_accuracy([], [], 0.05))


class TestDetectable:
    def test_agrees_with_mess(self):
        # R: MESS::power_mcnemar_test(paid = 0.05, psi = 9, power = 0.8) gives n = 22.
        assert stats.minimum_detectable_difference(22, 0.5) == pytest.approx(0.4, abs=0.005)

    def test_simulated_power(self):
        delta = stats.minimum_detectable_difference(300, 0.2)
        rng = np.random.default_rng(0)
        only_a, only_b, _ = rng.multinomial(
            300, [(0.2 + delta) / 2, (0.2 - delta) / 2, 0.8], size=4000
        ).T
        z = (only_a - only_b) / np.sqrt(only_a + only_b)
        assert (np.abs(z) > 1.96).mean() == pytest.approx(0.8, abs=0.03)

    def test_300_items_cannot_see_a_loss_of_5_points(self):
        # The study's hybrid: 0.82 dense, 0.77 dynamic, n = 300, "not significant". A loss of 15
        # items that is not significant means that so many items changed that n = 300 could not
        # have shown such a loss.
        changed = next(
            m for m in range(15, 301, 2)
            if scipy_stats.binomtest((m - 15) // 2, m).pvalue >= 0.05
        )  # fmt: skip
        assert changed == 53
        assert stats.minimum_detectable_difference(300, changed / 300) > 0.06

    @pytest.mark.parametrize(("n", "discordant"), [(0, 0.1), (300, 0.0), (20, 0.05)])
    def test_nothing_can_be_found(self, n, discordant):
        assert np.isnan(stats.minimum_detectable_difference(n, discordant))


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
        assert stats.tost_ratio(self.a, self.b, self.n, 0.01) == pytest.approx(expected)
        assert expected < 0.05

    def test_a_large_change_is_not_the_same(self):
        assert stats.tost_ratio(self.a + 10, self.b, self.n, 0.01) > 0.95

    def test_degenerate(self):
        assert stats.tost_ratio(self.b, self.b, self.n, 0.01) == 0.0
        assert stats.tost_ratio(self.b + 255, self.b, self.n, 0.01) == 1.0
        assert np.isnan(stats.tost_ratio([1.0], [1.0], [1], 0.01))


class TestPageTrend:
    def test_published_example(self):
        # Ratings of three teaching styles by ten students: the worked example of scipy's manual.
        table = [[3, 4, 3], [2, 2, 4], [3, 3, 5], [1, 3, 2], [2, 3, 2], [2, 4, 5]]
        table += [[1, 2, 4], [3, 4, 4], [2, 4, 5], [1, 3, 4]]
        got = stats.page_trend(table)
        assert got.statistic == 133.5
        assert got.p == pytest.approx(0.0018, abs=1e-4)

    @pytest.mark.parametrize("shape", [(1, 5), (5, 2)])
    def test_too_little(self, shape):
        assert np.isnan(stats.page_trend(np.zeros(shape))).all()

    def test_shape(self):
        with pytest.raises(KeepsetError, match="subjects"):
            stats.page_trend([1, 2, 3])


class TestBootstrapSpearman:
    @given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 9]))
    @settings(max_examples=25, deadline=None)
    def test_is_scipy_on_every_resample(self, seed, decimals):
        rng = np.random.default_rng(seed)
        x, y = rng.random((2, 30)).round(decimals)
        got = ranks.bootstrap_spearman(x, y, 20, np.random.default_rng(seed))
        drawn = np.random.default_rng(seed).integers(30, size=(20, 30))
        by_x = np.argsort(x, kind="stable")[drawn]
        expected = [scipy_stats.spearmanr(x[rows], y[rows]).statistic for rows in by_x]
        assert got == pytest.approx(expected)


class TestCorrelate:
    def correlate(self, x, y, layer, **options):
        return stats.correlate(
            x, y, layer, **{"confidence": 0.95, "resamples": 499, "seed": 3} | options
        )

    def test_agrees_with_scipy_per_layer_and_pools_their_mean(self):
        rng = np.random.default_rng(0)
        layer = np.repeat([0, 1, 5], 80)
        x = rng.random(240)
        y = x + rng.random(240) + 100 * layer  # a shift between layers is not agreement
        got = self.correlate(x, y, layer).set_index("layer")
        assert list(got.index) == [0, 1, 5, -1]
        own = layer == 5
        assert got.loc[5, "spearman"] == pytest.approx(scipy_stats.spearmanr(x[own], y[own])[0])
        assert got.loc[5, "pearson"] == pytest.approx(scipy_stats.pearsonr(x[own], y[own])[0])
        assert got.loc[5, "kendall"] == pytest.approx(scipy_stats.kendalltau(x[own], y[own])[0])
        assert got.loc[-1, "spearman"] == pytest.approx(got.loc[[0, 1, 5], "spearman"].mean())
        assert (got["ci_low"] < got["spearman"]).all()
        assert (got["spearman"] < got["ci_high"]).all()
        assert got["n_units"].to_dict() == {0: 80, 1: 80, 5: 80, -1: 240}

    def test_interval_near_fishers(self):
        rng = np.random.default_rng(1)
        x, noise = rng.normal(size=(2, 1000))
        got = self.correlate(x, x + 2 * noise, np.zeros(1000, int), resamples=1999).iloc[0]
        # Bonett and Wright (2000): standard error of Fisher's z of Spearman's rho.
        error = np.sqrt((1 + got["spearman"] ** 2 / 2) / 997)
        expected = np.tanh(np.arctanh(got["spearman"]) + error * np.array([-1.96, 1.96]))
        assert [got["ci_low"], got["ci_high"]] == pytest.approx(expected, abs=0.02)

    def test_layers_that_disagree_widen_the_pooled_interval(self):
        rng = np.random.default_rng(2)
        layer = np.repeat(np.arange(8), 200)
        x = rng.random(1600)
        same = self.correlate(x, x + rng.random(1600), layer).iloc[-1]
        sign = np.where(layer % 2 == 0, 1, -1)
        mixed = self.correlate(x, sign * x + rng.random(1600), layer).iloc[-1]
        assert mixed["ci_high"] - mixed["ci_low"] > 5 * (same["ci_high"] - same["ci_low"])

    def test_one_layer_still_has_an_interval(self):
        x = np.random.default_rng(0).random((2, 50))
        got = self.correlate(*x, np.zeros(50, int))
        assert got.loc[1, "ci_high"] - got.loc[1, "ci_low"] > 0.1

    def test_constant_layer_is_nan_and_does_not_warn(self):
        rng = np.random.default_rng(0)
        x, y = rng.random((2, 40))
        x[:20] = 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = self.correlate(x, y, np.repeat([0, 1], 20)).set_index("layer")
        assert np.isnan(got.loc[0, "spearman"])
        assert np.isnan(got.loc[0, "ci_low"])
        assert got.loc[-1, "spearman"] == got.loc[1, "spearman"]

    def test_all_constant(self):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = self.correlate(np.zeros(9), np.zeros(9), np.repeat([0, 1, 2], 3))
        assert got[["spearman", "ci_low", "ci_high"]].isna().all(axis=None)

    @pytest.mark.parametrize(
        ("x", "what"), [([1.0], "one length"), ([np.nan, 1.0], "finite"), ([], "one length")]
    )
    def test_bad_scores(self, x, what):
        with pytest.raises(KeepsetError, match=what):
            self.correlate(x, [1.0, 2.0], [0, 0])

    def test_is_fast(self):
        x, y = np.random.default_rng(0).random((2, 3 * 1536))
        start = time.process_time()
        self.correlate(x, y, np.repeat(np.arange(3), 1536), resamples=1999)
        assert time.process_time() - start < 3


class TestNewcombe:
    @pytest.mark.parametrize(
        ("counts", "expected"),
        [
            # Fagerland, Lydersen, Laake, Statist. Med. 33 (2014): airway data.
            ((1, 1, 7, 12), (-0.507, -0.026)),
            # Altman, Machin, Bryant, Gardner, Statistics with Confidence (2000), table 6.2.
            ((14, 5, 0, 22), (0.011, 0.226)),
        ],
    )
    def test_published(self, counts, expected):
        assert stats.newcombe(*pairs(*counts), 0.95) == pytest.approx(expected, abs=5e-4)

    def test_no_items(self):
        assert np.isnan(stats.newcombe([], [], 0.95)).all()

    def test_all_right(self):
        # Nothing varies: the two Wilson intervals alone, added in squares.
        low, high = stats.newcombe(*pairs(20, 0, 0, 0), 0.95)
        below = 1 - stats.wilson(20, 20, 0.95).low
        assert (low, high) == pytest.approx((-below, below))

    @given(COUNTS)
    def test_mirrors_and_is_near_tango(self, counts):
        a, b = pairs(*counts)
        low, high = stats.newcombe(a, b, 0.95)
        assert low - 1e-12 <= a.mean() - b.mean() <= high + 1e-12
        assert stats.newcombe(b, a, 0.95) == pytest.approx((-high, -low), abs=1e-12)

    def test_is_near_tango_where_items_are_many(self):
        a, b = pairs(400, 60, 40, 500)
        expected = stats.paired_difference(a, b, 0.95)
        assert stats.newcombe(a, b, 0.95) == pytest.approx(expected, abs=2e-3)


def test_bca_of_the_spatial_test_data():
    # Efron and Tibshirani, An Introduction to the Bootstrap (1993), table 14.1 and section 14.3:
    # variance of 26 scores, 90% BCa interval (115.8, 259.6) of 2,000 resamples.
    scores = "48 36 20 29 42 42 20 42 22 41 45 14 6 0 33 28 34 4 32 24 47 41 24 26 30 41"
    data = np.array(scores.split(), dtype=float)
    assert data.var() == pytest.approx(171.5, abs=0.05)
    got = stats.bca((data,), lambda x, axis: x.var(axis=axis), 0.90, 20_000, 0)
    # The bootstrap's own error at 2,000 resamples is about 3 at these ends.
    assert got == pytest.approx((115.8, 259.6), abs=4)

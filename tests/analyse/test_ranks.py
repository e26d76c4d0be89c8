from __future__ import annotations

import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats as scipy_stats

from keepset.analyse import ranks
from keepset.errors import KeepsetError


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
        return ranks.correlate(
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

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy import stats as scipy_stats

from keepset.analyse import ranks
from keepset.errors import KeepsetError


class TestCorrelate:
    def test_agrees_with_scipy_per_layer(self):
        rng = np.random.default_rng(0)
        layer = np.repeat([0, 1, 5], 80)
        x = rng.random(240)
        y = x + rng.random(240) + 100 * layer  # a shift between layers is not agreement
        got = ranks.correlate(x, y, layer).set_index("layer")
        assert list(got.index) == [0, 1, 5]
        own = layer == 5
        assert got.loc[5, "spearman"] == pytest.approx(scipy_stats.spearmanr(x[own], y[own])[0])
        assert got.loc[5, "pearson"] == pytest.approx(scipy_stats.pearsonr(x[own], y[own])[0])
        assert got.loc[5, "kendall"] == pytest.approx(scipy_stats.kendalltau(x[own], y[own])[0])
        assert got["n_units"].to_list() == [80, 80, 80]

    def test_constant_layer_is_nan_and_does_not_warn(self):
        rng = np.random.default_rng(0)
        x, y = rng.random((2, 40))
        x[:20] = 0.0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            got = ranks.correlate(x, y, np.repeat([0, 1], 20)).set_index("layer")
        assert got.loc[0, ranks.COEFFICIENTS].isna().all()
        assert got.loc[1, ranks.COEFFICIENTS].notna().all()

    def test_two_units_are_too_few(self):
        got = ranks.correlate([1.0, 2.0], [2.0, 1.0], [0, 0])
        assert got[ranks.COEFFICIENTS].isna().all(axis=None)

    @pytest.mark.parametrize(
        ("x", "what"), [([1.0], "one length"), ([np.nan, 1.0], "finite"), ([], "one length")]
    )
    def test_bad_scores(self, x, what):
        with pytest.raises(KeepsetError, match=what):
            ranks.correlate(x, [1.0, 2.0], [0, 0])

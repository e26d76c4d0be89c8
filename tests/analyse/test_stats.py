from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from statsmodels.stats.multitest import multipletests

from keepset.analyse import stats


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


def test_bca_of_the_spatial_test_data():
    # Efron and Tibshirani, An Introduction to the Bootstrap (1993), table 14.1 and section 14.3:
    # variance of 26 scores, 90% BCa interval (115.8, 259.6) of 2,000 resamples.
    scores = "48 36 20 29 42 42 20 42 22 41 45 14 6 0 33 28 34 4 32 24 47 41 24 26 30 41"
    data = np.array(scores.split(), dtype=float)
    assert data.var() == pytest.approx(171.5, abs=0.05)
    got = stats.bca((data,), lambda x, axis: x.var(axis=axis), stats.Sampling(0.90, 20_000, 0))
    # The bootstrap's own error at 2,000 resamples is about 3 at these ends.
    assert got[:2] == pytest.approx((115.8, 259.6), abs=4)

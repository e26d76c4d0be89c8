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

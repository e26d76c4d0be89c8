from __future__ import annotations

import numpy as np
import pytest
from scipy import stats as scipy_stats

from keepset.analyse import perplexities
from keepset.errors import KeepsetError


class TestNatsPerToken:
    def test_documents_of_one_length_give_the_one_sample_t_test(self):
        nats = np.random.default_rng(0).normal(20.0, 5.0, size=12)
        document = np.repeat(np.arange(6), 2)
        got = perplexities.nats_per_token(nats, np.full(12, 255), document)
        means = nats.reshape(6, 2).sum(axis=1) / 510
        assert got.value == pytest.approx(means.mean(), rel=1e-12)
        assert got.error == pytest.approx(scipy_stats.sem(means), rel=1e-12)
        assert got.df == 5

    def test_is_the_ratio_estimator(self):
        # By hand: documents 0 and 1 with 30 and 10 tokens; 6 nats / 40 tokens = 0.15.
        # Residuals 5 - 4.5 = 0.5 and 1 - 1.5 = -0.5; error sqrt(2 / 1 * 0.5) / 40 = 1 / 40.
        got = perplexities.nats_per_token([2.0, 3.0, 1.0], [10, 20, 10], [0, 0, 1])
        assert got == pytest.approx((0.15, 1 / 40, 1))

    def test_does_not_depend_on_the_order_or_the_names_of_documents(self):
        rng = np.random.default_rng(1)
        nats, tokens = rng.normal(3, 1, 9), rng.integers(50, 200, 9)
        document, order = np.array([4, 4, 7, 7, 7, 0, 2, 2, 0]), rng.permutation(9)
        first = perplexities.nats_per_token(nats, tokens, document)
        again = perplexities.nats_per_token(nats[order], tokens[order], document[order] + 100)
        assert again == pytest.approx(first, rel=1e-12)

    def test_one_document_says_nothing_about_others(self):
        got = perplexities.nats_per_token(np.arange(16.0), np.full(16, 255), np.zeros(16))
        assert np.isfinite(got.value)
        assert np.isnan(got.error)
        assert got.df == 0

    @pytest.mark.parametrize(
        ("nats", "n", "document", "what"),
        [
            ([1.0], [1, 1], [0, 1], "one length"),
            ([1.0, 1.0], [1, 1], [0], "one length"),
            ([np.inf, 1.0], [1, 1], [0, 1], "finite"),
            ([1.0, 1.0], [1, np.nan], [0, 1], "finite"),
            ([1.0, 1.0], [0, 1], [0, 1], "at least one"),
            ([], [], [], "one length"),
        ],
    )
    def test_bad_blocks(self, nats, n, document, what):
        with pytest.raises(KeepsetError, match=what):
            perplexities.nats_per_token(nats, n, document)


class TestRounding:
    def test_is_the_variance_of_the_log_perplexity(self):
        runs = np.array([[10.0, 20.0], [11.0, 20.0], [10.0, 22.0]])
        got = perplexities.rounding(runs, [5, 10])
        assert got.variance == pytest.approx(np.var([30 / 15, 31 / 15, 32 / 15], ddof=1))
        assert got.df == 2

    @pytest.mark.parametrize(
        ("runs", "what"),
        [
            ([[1.0, 2.0]], "rounding_draws to 2 or more"),
            ([[1.0], [2.0]], "draws x blocks"),
            ([[1.0, 2.0], [1.0, np.nan]], "not finite"),
        ],
    )
    def test_bad_runs(self, runs, what):
        with pytest.raises(KeepsetError, match=what):
            perplexities.rounding(runs, [1, 1])


def test_perplexity_overflows_to_infinity_without_a_warning():
    assert perplexities.perplexity(1e6, 1) == np.inf
    assert perplexities.perplexity(20.0, 10) == pytest.approx(np.e**2)

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st
from scipy import stats as scipy_stats

from keepset.analyse import accuracies
from keepset.errors import KeepsetError

COUNTS = st.tuples(*[st.integers(0, 30)] * 4).filter(lambda t: sum(t) > 0)


def pairs(both: int, only_a: int, only_b: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    counts = [both, only_a, only_b, neither]
    return np.repeat([True, True, False, False], counts), np.repeat(
        [True, False, True, False], counts
    )


class TestWilson:
    def test_newcombe_1998_example(self):
        # Newcombe, Statist. Med. 17 (1998) 857-872, table I: 81 of 263, method 3.
        assert accuracies.wilson(81, 263, 0.95) == pytest.approx((0.2553, 0.3662), abs=5e-5)

    def test_ends(self):
        assert accuracies.wilson(0, 20, 0.95) == pytest.approx((0.0, 0.1611), abs=5e-5)
        assert accuracies.wilson(20, 20, 0.95).high == pytest.approx(1.0)

    def test_no_items(self):
        assert np.isnan(accuracies.wilson(0, 0, 0.95)).all()


class TestMcNemar:
    def test_agrees_with_the_binomial(self):
        got = accuracies.mcnemar_exact(*pairs(59, 6, 16, 80))
        assert got.p == pytest.approx(scipy_stats.binomtest(6, 22).pvalue)
        assert (got.only_a, got.only_b) == (6, 16)

    def test_published(self):
        # Fagerland, Lydersen, Laake, Statist. Med. 33 (2014): airway data, exact conditional.
        assert accuracies.mcnemar_exact(*pairs(1, 1, 7, 12)).p == pytest.approx(0.0703, abs=5e-5)

    def test_all_agree(self):
        assert accuracies.mcnemar_exact(*pairs(10, 0, 0, 5)).p == 1.0

    def test_no_items(self):
        assert np.isnan(accuracies.mcnemar_exact([], []).p)

    def test_unequal_lengths(self):
        with pytest.raises(KeepsetError, match="one length"):
            accuracies.mcnemar_exact([True], [True, False])


class TestPairedDifference:
    def test_airway_example(self):
        # Fagerland, Lydersen, Laake, Statist. Med. 33 (2014): Tango's interval.
        got = accuracies.paired_difference(*pairs(1, 1, 7, 12), 0.95)
        assert got == pytest.approx((-0.517, -0.026), abs=5e-4)

    def test_agrees_with_propcis(self):
        # R: PropCIs::scoreci.mp(25, 28, 618, 0.90), which takes the difference the other way.
        got = accuracies.paired_difference(*pairs(300, 28, 25, 265), 0.90)
        assert got == pytest.approx((-0.0148, 0.0247), abs=5e-5)

    def test_keeps_a_width_where_all_agree(self):
        # With no discordant pair the bound is z^2 / (n + z^2).
        z2 = scipy_stats.norm.ppf(0.975) ** 2
        got = accuracies.paired_difference(*pairs(200, 0, 0, 100), 0.95)
        assert got == pytest.approx((-z2 / (300 + z2), z2 / (300 + z2)))

    @pytest.mark.parametrize("counts", [(0, 5, 0, 0), (0, 0, 5, 0), (1, 0, 0, 0)])
    def test_ends(self, counts):
        low, high = accuracies.paired_difference(*pairs(*counts), 0.95)
        assert -1 <= low < high <= 1

    def test_no_items(self):
        assert np.isnan(accuracies.paired_difference([], [], 0.95)).all()

    @given(COUNTS)
    def test_mirrors_and_holds_the_estimate(self, counts):
        a, b = pairs(*counts)
        low, high = accuracies.paired_difference(a, b, 0.95)
        assert -1 <= low <= a.mean() - b.mean() <= high <= 1
        assert accuracies.paired_difference(b, a, 0.95) == pytest.approx((-high, -low), abs=1e-6)


class TestTostAccuracy:
    def test_tango_example(self):
        # Tango (1998), section 6: n = 44, one discordant pair, margin 0.1: Z = 1.709.
        got = accuracies.tost_accuracy(*pairs(43, 0, 1, 0), 0.1)
        assert got == pytest.approx(scipy_stats.norm.sf(1.709), abs=5e-5)

    @given(COUNTS, st.floats(0.01, 0.5))
    def test_is_the_interval_inside_the_margin(self, counts, margin):
        a, b = pairs(*counts)
        low, high = accuracies.paired_difference(a, b, 0.90)
        if min(abs(low + margin), abs(high - margin)) > 1e-6:
            inside = -margin < low and high < margin
            assert (accuracies.tost_accuracy(a, b, margin) < 0.05) == inside

    def test_few_items_prove_nothing(self):
        assert accuracies.tost_accuracy(*pairs(6, 0, 0, 4), 0.05) > 0.05

    def test_no_items(self):
        assert np.isnan(accuracies.tost_accuracy([], [], 0.05))


class TestDetectable:
    def test_agrees_with_mess(self):
        # R: MESS::power_mcnemar_test(paid = 0.05, psi = 9, power = 0.8) gives n = 22.
        assert accuracies.minimum_detectable_difference(22, 0.5) == pytest.approx(0.4, abs=0.005)

    def test_simulated_power(self):
        delta = accuracies.minimum_detectable_difference(300, 0.2)
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
        assert accuracies.minimum_detectable_difference(300, changed / 300) > 0.06

    @pytest.mark.parametrize(("n", "discordant"), [(0, 0.1), (300, 0.0), (20, 0.05)])
    def test_nothing_can_be_found(self, n, discordant):
        assert np.isnan(accuracies.minimum_detectable_difference(n, discordant))


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
        assert accuracies.newcombe(*pairs(*counts), 0.95) == pytest.approx(expected, abs=5e-4)

    def test_no_items(self):
        assert np.isnan(accuracies.newcombe([], [], 0.95)).all()

    def test_all_right(self):
        # Nothing varies: the two Wilson intervals alone, added in squares.
        low, high = accuracies.newcombe(*pairs(20, 0, 0, 0), 0.95)
        below = 1 - accuracies.wilson(20, 20, 0.95).low
        assert (low, high) == pytest.approx((-below, below))

    @given(COUNTS)
    def test_mirrors_and_is_near_tango(self, counts):
        a, b = pairs(*counts)
        low, high = accuracies.newcombe(a, b, 0.95)
        assert low - 1e-12 <= a.mean() - b.mean() <= high + 1e-12
        assert accuracies.newcombe(b, a, 0.95) == pytest.approx((-high, -low), abs=1e-12)

    def test_is_near_tango_where_items_are_many(self):
        a, b = pairs(400, 60, 40, 500)
        expected = accuracies.paired_difference(a, b, 0.95)
        assert accuracies.newcombe(a, b, 0.95) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("statistic", [accuracies.discordant, accuracies.mcnemar_exact])
def test_an_answer_that_is_not_known_is_no_right_one(statistic):
    with pytest.raises(KeepsetError, match="neither a right nor a wrong"):
        statistic([True, np.nan], [True, False])


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_shares_and_margins_are_what_they_are_said_to_be(share):
    with pytest.raises(KeepsetError, match=r"margin of accuracy must be in \(0, 1\)"):
        accuracies.tost_accuracy([True, False], [True, True], share)
    with pytest.raises(KeepsetError, match=r"discordant pairs must be in \[0, 1\]"):
        accuracies.minimum_detectable_difference(300, share)

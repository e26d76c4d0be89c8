"""How cases become verdicts, on claims that are made up of nothing but effects."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
from scipy import stats

from keepset.analyse import claims, effects
from keepset.analyse.bounds import Bounds, needed
from keepset.analyse.claims.case import OURS, Case, Claim
from keepset.settings import Statistics

NOTHING = claims.Evidence(models=pd.DataFrame(), statistics=Statistics(confidence=0.95))
DF = 15
ABOVE = Bounds(low=0.0)


def effect(p_against: float, **facts):
    """An effect whose test against "more than 0" has this p; its error is 1."""
    estimate = float(stats.t.ppf(p_against, DF))
    measured = effects.t_effect(
        estimate, 1.0, DF, 0.95, n=DF + 1, unit="document", test="t-test",
    )  # fmt: skip
    return replace(measured, **facts)


def claim(name, *measured, bounds=ABOVE, origin="pretrained"):
    cases = [
        Case("m", origin, "ffn", f"text {at}", "a less b", "difference", one, bounds)
        for at, one in enumerate(measured)
    ]
    return Claim(name, name, "a > b", OURS, "none", "t", "more models", lambda _: iter(cases))


def judge(*judged):
    ledger, cases = claims.judge(NOTHING, judged)
    return ledger.set_index("claim"), cases


OTHERS = [claim(f"Y{at}", effect(0.5)) for at in range(9)]


class TestCasesThatFailByThemselves:
    """A case outside of what is claimed does not contradict: one of several always lies there."""

    ledger, cases = judge(claim("X", effect(0.0057), effect(0.02), effect(0.6)), *OTHERS)
    row = ledger.loc["X"]

    def test_the_claim_stays_open_and_the_reason_is_said(self):
        assert self.row["verdict"] == "inconclusive"
        assert self.row["p_against_holm"] == pytest.approx(0.171)
        assert (
            "2 of 3 cases would fail alone, but not after adjustment: smallest p 0.0057, times 3"
            " cases 0.017, over the claims of this source 0.17" in self.row["note"]
        )
        assert "too few" not in self.row["note"]
        assert self.row["why"] == "2 of 3 cases fail, but not after adjustment: p = 0.17"

    def test_its_interval_lies_outside(self):
        failing = self.cases.query("claim == 'X' and where == 'text 0'").iloc[0]
        assert failing["ci_high"] < failing["bound_low"]

    def test_a_contradicted_claim_counts_its_failing_cases(self):
        row = judge(claim("X", effect(1e-6), effect(1e-6), effect(0.6)))[0].loc["X"]
        assert (row["verdict"], row["why"]) == ("contradicted", "fails in 2 of 3 cases")


class TestCasesOfOneClaim:
    def test_a_fail_is_adjusted_over_the_cases(self):
        """One of 32 is expected to fail at 0.03 where nothing does."""
        row = judge(claim("X", effect(0.01), *[effect(0.9)] * 31))
        assert row[0].loc["X", "fail"] == 0
        first = row[1].iloc[0]
        assert first["p_against_holm"] == pytest.approx(0.32)
        assert first["verdict"] == "inconclusive"

    def test_a_hold_is_not_since_all_must(self):
        row = judge(claim("X", *[effect(0.97)] * 32))[0].loc["X"]
        assert (row["verdict"], row["hold"]) == ("reproduced", 32)

    def test_specimens_beside_are_adjusted_among_themselves(self):
        both = claim("X", effect(0.97))
        beside = claim("X", effect(0.02), effect(0.9), origin="specimen")
        found = [*both.rule(NOTHING), *beside.rule(NOTHING)]
        _, cases = judge(replace(both, rule=lambda _: iter(found)))
        assert cases["counted"].tolist() == [True, False, False]
        assert cases["p_against_holm"].tolist() == pytest.approx([0.97, 0.04, 0.9])
        assert cases["verdict"].tolist() == ["reproduced", "contradicted", "inconclusive"]


class TestWhatWouldDecide:
    def test_at_the_level_that_holm_asks_of_the_claim(self):
        near = effect(0.947)  # p for: 0.053, the fourth largest of its family
        others = [claim(f"Y{at}", effect(0.5)) for at in range(3)]
        row = judge(claim("X", near), *others)[0].loc["X"]
        assert row["verdict"] == "inconclusive"
        assert row["needed"] == needed(near, ABOVE, 0.05 / 4).n > needed(near, ABOVE, 0.05).n
        assert f"{row['needed']:.0f} documents would decide (n = 16)" in row["note"]
        assert row["why"] == f"{row['needed']:.0f} documents would decide"

    def test_against_the_claim_every_case_counts(self):
        below = effect(0.2)
        row = judge(claim("X", below, effect(0.9999)))[0].loc["X"]
        assert row["needed"] == needed(below, ABOVE, 0.05 / 2).n

    def test_a_claim_that_only_holm_holds_back_says_so_and_what_would_do(self):
        close = [claim(f"X{at}", effect(0.96)) for at in range(2)]
        row = judge(*close)[0].loc["X0"]
        assert row["verdict"] == "inconclusive"
        assert "each case holds by itself, not after adjustment: largest p 0.04" in row["note"]
        assert row["why"] == "the only case holds, but not after adjustment: p = 0.08"
        assert row["needed"] > 16

    def test_rounding_larger_than_the_margin(self):
        """No text decides then."""
        rounded = effect(0.6, floor=0.9)
        row = judge(claim("X", rounded, bounds=Bounds(-1.0, 1.0)))[0].loc["X"]
        assert row["verdict"] == "inconclusive"
        assert row["needed"] == float("inf")
        assert "rounding alone" in row["note"]
        assert row["why"].startswith("rounding alone")

    def test_more_documents_than_there_are(self):
        row = judge(claim("X", effect(0.7, limit=20)))[0].loc["X"]
        assert "documents would decide, and only 20 can be had" in row["note"]

    def test_nothing_is_needed_where_a_claim_is_decided(self):
        ledger, cases = judge(claim("X", effect(0.999)), claim("Z", effect(1e-4)))
        assert ledger["verdict"].tolist() == ["reproduced", "contradicted"]
        assert ledger["needed"].isna().all()
        assert cases["needed"].isna().all()

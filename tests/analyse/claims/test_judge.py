from __future__ import annotations

from dataclasses import fields, replace

import made_up_evidence as made_up
import numpy as np
import pandas as pd
import pytest

from keepset.analyse import claims
from keepset.analyse.claims.judge import CASE_COLUMNS, LEDGER_COLUMNS
from keepset.settings import Statistics

IDS = [claim.id for claim in claims.CLAIMS]
ORIGINS = ("pretrained", "specimen")
TABLES = ("perplexity", "capability", "correlation", "ablations", "channels", "memory")


@pytest.fixture(scope="module")
def studies():
    return {origin: made_up.evidence(origin) for origin in ORIGINS}


@pytest.fixture(scope="module")
def judged(studies):
    return {origin: claims.judge(study) for origin, study in studies.items()}


def one(evidence, claim: str) -> pd.Series:
    """The ledger row of one claim, judged alone."""
    found = [c for c in claims.CLAIMS if c.id == claim]
    return claims.judge(evidence, found)[0].iloc[0]


def test_every_claim_is_there():
    assert [f"C{n}" for n in range(1, 17)] + [f"D{n}" for n in range(1, 5)] == IDS


@pytest.mark.parametrize("claim", IDS)
@pytest.mark.parametrize("origin", ORIGINS)
def test_holds_where_it_should(judged, origin, claim):
    ledger = judged[origin][0].set_index("claim")
    assert ledger.loc[claim, "verdict"] == "reproduced", ledger.loc[claim].to_dict()
    assert ledger.loc[claim, "scope"] == {"pretrained": "value", "specimen": "direction"}[origin]


@pytest.mark.parametrize("claim", IDS)
@pytest.mark.parametrize("origin", ORIGINS)
def test_a_changed_table_flips_its_verdict(studies, origin, claim):
    assert one(studies[origin], claim)["verdict"] == "reproduced"
    changed = one(made_up.BREAK[claim](studies[origin]), claim)
    assert changed["verdict"] == "contradicted", changed.to_dict()
    assert changed["fail"] > 0


@pytest.mark.parametrize("claim", IDS)
def test_without_its_models_it_is_not_tested(studies, claim):
    empty = replace(
        studies["pretrained"],
        models=studies["pretrained"].models.head(0),
        **{name: pd.DataFrame() for name in TABLES},
    )
    row = one(empty, claim)
    assert row["verdict"] == "not tested here"
    assert row["note"].startswith("needs ")
    assert (row["cases"], row["scope"]) == (0, "none")


@pytest.mark.parametrize("table", TABLES)
def test_a_missing_table_is_no_error(studies, judged, table):
    ledger = claims.judge(replace(studies["specimen"], **{table: pd.DataFrame()}))[0]
    gone = set(ledger.loc[ledger["verdict"] == "not tested here", "claim"])
    assert gone
    rest = ledger[~ledger["claim"].isin(gone)]
    assert (rest["verdict"] == "reproduced").all()
    assert all(ledger.loc[ledger["claim"].isin(gone), "note"].str.startswith("needs "))


def test_models_without_their_rows_are_no_error(studies):
    study = studies["specimen"]
    table = study.perplexity
    dense_only = replace(study, perplexity=table[table["method"] == "dense"])
    ledger = claims.judge(dense_only)[0].set_index("claim")
    assert ledger.loc["C4", "verdict"] == "not tested here"
    assert "static magnitude 90% was not run for relu" in ledger.loc["C4", "note"]


class TestInconclusive:
    @pytest.fixture(scope="class")
    def noisy(self):
        """So much noise that ReLU's sameness cannot be told, in four blocks."""
        study = made_up.evidence("pretrained", noise=0.05)
        table = study.perplexity
        return replace(study, perplexity=table[table["block"] < 4])

    def test_says_how_many_would_decide(self, noisy):
        row = one(noisy, "C5")
        assert row["verdict"] == "inconclusive"
        assert row["needed"] > row["n"] == 4
        assert f"{row['needed']:.0f} blocks would decide (n = 4)" in row["note"]

    def test_many_blocks_do_decide(self, monkeypatch):
        monkeypatch.setattr(made_up, "BLOCKS", 600)
        study = made_up.evidence("pretrained", noise=0.05)
        row = one(replace(study, models=study.models.query("model == 'opt-1.3b'")), "C5")
        assert (row["verdict"], row["n"]) == ("reproduced", 600)

    def test_one_block_has_no_test(self, studies):
        table = studies["pretrained"].perplexity
        row = one(replace(studies["pretrained"], perplexity=table[table["block"] == 0]), "C4")
        assert row["verdict"] == "inconclusive"
        assert "too few blocks for a test (n = 1)" in row["note"]

    def test_300_items_cannot_show_sameness_within_one_point(self, studies):
        study = studies["pretrained"]
        table = study.capability
        few = replace(
            study,
            capability=table[table["item"] < 300],
            statistics=Statistics(resamples=199, accuracy_margin=0.01),
        )
        row = one(few, "C7")
        assert row["verdict"] == "inconclusive"
        assert row["needed"] > 300


class TestScope:
    def test_a_specimens_number_is_not_compared_with_a_large_models(self, studies):
        # Static costs 5 times dense: far from a hundredfold, but in the direction.
        study = made_up.shift(studies["specimen"], -4.1, site="ffn", method="static", sparsity=0.9)
        row = one(study, "C4")
        assert row["verdict"] == "reproduced"
        assert row["estimate"] == pytest.approx(5, rel=0.1)
        assert row["bound_low"] == 1.0
        assert "direction only, in specimens; the value needs" in row["note"]

    def test_no_specimen_has_a_papers_number_for_a_bound(self, judged):
        cases = judged["specimen"][1]
        # What may bound a specimen: no effect, the disagreement between chance and agreement, and
        # for C2 how far its own correlations differ from each other.
        ends = set(cases["bound_low"].dropna()) | set(cases["bound_high"].dropna())
        assert ends == {0.0, 1.0, 0.25, -0.1, 0.1}
        assert set(cases.loc[cases["bound_high"] == 0.1, "claim"]) == {"C2"}

    def test_pretrained_models_decide_where_there_are_some(self, studies):
        both = claims.Evidence(**{
            field.name: pd.concat([getattr(studies[o], field.name) for o in ORIGINS])
            for field in fields(claims.Evidence)
            if field.name in (*TABLES, "models")
        }, tasks=made_up.TASKS, statistics=Statistics(resamples=199))  # fmt: skip
        failing = made_up.shift(
            both, -6.0, site="ffn", method="static", sparsity=0.9, origin="specimen"
        )
        row = one(failing, "C4")
        assert (row["verdict"], row["scope"]) == ("reproduced", "value")
        assert "specimens, direction only: 0 of 6 hold, 6 fail" in row["note"]
        cases = claims.judge(failing)[1].query("claim == 'C4'")
        assert cases.groupby("origin")["counted"].unique().map(list).to_dict() == {
            "pretrained": [True],
            "specimen": [False],
        }


class TestCombining:
    def test_one_failing_case_of_many_contradicts(self, studies):
        study = made_up.shift(
            studies["pretrained"], -6, site="ffn", method="static", sparsity=0.9,
            model="opt-1.3b", corpus="docs",
        )  # fmt: skip
        row = one(study, "C4")
        assert row["verdict"] == "contradicted"
        assert (row["fail"], row["hold"], row["cases"]) == (1, 5, 6)
        assert (row["model"], row["where"]) == ("opt-1.3b", "docs")

    def test_one_open_case_leaves_it_open(self, studies):
        table = studies["pretrained"].perplexity.copy()
        own = made_up.where(
            table, site="ffn", method="static", sparsity=0.9, model="opt-1.3b", corpus="docs"
        )
        # Ratios around 100: half of the blocks far above, half far below.
        table.loc[own, "nll"] += made_up.TOKENS * (-1.1 + 3 * (table["block"] % 2 - 0.5))
        row = one(replace(studies["pretrained"], perplexity=table), "C4")
        assert row["verdict"] == "inconclusive"
        assert "5 of 6 cases hold, 0 fail, 1 open" in row["note"]
        assert (row["model"], row["where"]) == ("opt-1.3b", "docs")

    def test_p_values_of_a_family_are_adjusted_by_holm(self, judged):
        ledger = judged["pretrained"][0]
        for _, family in ledger.groupby("family"):
            known = family["p_for"].dropna().sort_values()
            steps = known * np.arange(len(known), 0, -1)
            expected = steps.cummax().clip(upper=1)
            assert family.loc[known.index, "p_for_holm"].tolist() == pytest.approx(
                expected.tolist()
            )

    def test_adjustment_can_leave_a_claim_open(self, studies):
        # Alone each holds at 0.04; two such claims of one family do not: Holm doubles the smaller.
        study = studies["pretrained"]
        rows = made_up.where(study.correlation, site="state")
        table = study.correlation.copy()
        # Mean -0.5, standard deviation 0.9 over twelve layers: p = 0.04.
        wave = -0.5 + 0.9 * np.tile([1, -1], made_up.LAYERS // 2) * np.sqrt(11 / 12)
        table.loc[rows & (table["layer"] >= 0), "spearman"] = np.tile(wave, 4)
        # C1 has a bound on either side, at 0 and 0.5: half the scale about the middle.
        other = made_up.where(study.correlation, site="ffn") & (table["layer"] >= 0)
        table.loc[other, "spearman"] = np.resize(0.5 + wave / 2, int(other.sum()))
        open_ = replace(study, correlation=table)
        alone = one(open_, "C3")
        assert alone["verdict"] == "reproduced"
        assert 0.01 < alone["p_for"] < 0.05
        row = claims.judge(open_)[0].set_index("claim").loc["C3"]
        assert row["verdict"] == "inconclusive"
        assert "not all after Holm's adjustment" in row["note"]

    def test_a_measured_quantity_has_no_p(self, judged):
        row = judged["pretrained"][0].set_index("claim").loc["C16"]
        assert row[["p_for", "p_for_holm", "ci_low"]].isna().all()
        assert row["estimate"] == pytest.approx(0.3)


class TestTables:
    def test_columns(self, judged):
        ledger, cases = judged["pretrained"]
        assert list(ledger.columns) == LEDGER_COLUMNS
        assert list(cases.columns) == CASE_COLUMNS

    def test_the_deciding_case_is_among_the_cases(self, judged):
        ledger, cases = judged["specimen"]
        for row in ledger.itertuples():
            own = cases[(cases["claim"] == row.claim) & (cases["model"] == row.model)]
            assert (own["estimate"] == row.estimate).any()

    def test_same_again(self, studies, judged):
        again = claims.judge(studies["specimen"])
        for found, before in zip(again, judged["specimen"], strict=True):
            pd.testing.assert_frame_equal(found, before)

    def test_capability_floor(self, studies):
        study = made_up.answer(studies["pretrained"], False, 1.0, model="opt-1.3b")
        row = one(replace(study, models=study.models.query("model == 'opt-1.3b'")), "C7")
        assert row["verdict"] == "not tested here"
        assert "opt-1.3b gets 0% of last-word right dense: too few to lose" in row["note"]

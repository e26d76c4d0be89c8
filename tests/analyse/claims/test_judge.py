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
# The last three compare specimens with each other.
TESTED = [(o, c) for o in ORIGINS for c in IDS if o == "specimen" or c not in ("D6", "D7", "D8")]
# What these say has no direction, so a specimen is held to the sentence itself.
SAID_OF_ALL = ("C5", "C7", "C9", "C13", "E2")
TABLES = ("perplexity", "rounding", "capability", "correlation", "ablations", "channels", "memory")


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
    assert [f"C{n}" for n in range(1, 17)] + [f"D{n}" for n in range(1, 9)] + [
        "E1",
        "E2",
        "E3",
        "F1",
    ] == IDS


@pytest.mark.parametrize(("origin", "claim"), TESTED)
def test_holds_where_it_should(judged, origin, claim):
    ledger = judged[origin][0].set_index("claim")
    assert ledger.loc[claim, "verdict"] == "reproduced", ledger.loc[claim].to_dict()
    assert ledger.loc[claim, "scope"] == {"pretrained": "value", "specimen": "direction"}[origin]


@pytest.mark.parametrize(("origin", "claim"), TESTED)
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
    assert bool(gone) == (table != "rounding")
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
    @classmethod
    def noisy(cls):
        """So much noise that ReLU's sameness cannot be told, in four blocks."""
        study = made_up.evidence("pretrained", noise=0.05)
        table = study.perplexity
        return replace(study, perplexity=table[table["block"] < 4])

    def test_says_how_many_would_decide(self, noisy):
        row = one(noisy, "C5")
        assert row["verdict"] == "inconclusive"
        assert row["needed"] > row["n"] == 3
        assert f"{row['needed']:.0f} documents would decide (n = 3)" in row["note"]

    def test_many_blocks_do_decide(self, monkeypatch):
        for name in ("BLOCKS", "MORE_BLOCKS", "DOCUMENTS"):
            monkeypatch.setattr(made_up, name, 600)
        study = made_up.evidence("pretrained", noise=0.05)
        row = one(replace(study, models=study.models.query("model == 'opt-1.3b'")), "C5")
        assert (row["verdict"], row["n"]) == ("reproduced", 600)

    def test_one_document_has_no_test(self, studies):
        table = studies["pretrained"].perplexity
        one_document = table[table["document"] == 0]
        assert one_document["block"].nunique() > 1
        row = one(replace(studies["pretrained"], perplexity=one_document), "C4")
        assert row["verdict"] == "inconclusive"
        assert "its error is not known from 1 document" in row["note"]

    def test_300_items_cannot_show_sameness_within_one_point(self, studies):
        study = studies["pretrained"]
        table = study.capability
        few = replace(
            study,
            capability=table[table["item"] < 300],
            statistics=Statistics(accuracy_margin=0.01),
        )
        row = one(few, "C7")
        assert row["verdict"] == "inconclusive"
        assert row["needed"] > 300


class TestScope:
    def test_a_specimens_number_is_not_compared_with_a_large_models(self, studies):
        # Static costs about 5 times dense: far from a hundredfold, but in the direction.
        study = made_up.shift(studies["specimen"], -4.1, site="ffn", method="static", sparsity=0.9)
        row = one(study, "C4")
        assert row["verdict"] == "reproduced"
        assert 4 < row["estimate"] < row["ci_high"] < 6
        assert row["bound_low"] == 1.0
        assert "only in specimens trained here, once each; for more it needs" in row["note"]

    def test_no_specimen_has_a_papers_number_for_a_bound(self, judged):
        cases = judged["specimen"][1]
        # What may bound a specimen: no effect, the disagreement between chance and agreement, and
        # for C2 how far its own correlations differ from each other. Claims of sameness, and that
        # of mild cost, have no direction.
        directions = cases[~cases["claim"].isin(SAID_OF_ALL)]
        ends = set(directions["bound_low"].dropna()) | set(directions["bound_high"].dropna())
        assert ends == {0.0, 1.0, 0.25, -0.1, 0.1}
        assert set(directions.loc[directions["bound_high"] == 0.1, "claim"]) == {"C2"}

    def test_pretrained_models_decide_where_there_are_some(self, studies):
        both = claims.Evidence(**{
            field.name: pd.concat([getattr(studies[o], field.name) for o in ORIGINS])
            for field in fields(claims.Evidence)
            if field.name in (*TABLES, "models")
        }, tasks=made_up.TASKS, statistics=Statistics())  # fmt: skip
        failing = made_up.shift(
            both, -6.0, site="ffn", method="static", sparsity=0.9, origin="specimen"
        )
        row = one(failing, "C4")
        assert (row["verdict"], row["scope"]) == ("reproduced", "value")
        assert "specimens, direction only: 0 of 8 hold, 8 fail" in row["note"]
        cases = claims.judge(failing)[1].query("claim == 'C4'")
        assert cases.groupby("origin")["counted"].unique().map(list).to_dict() == {
            "pretrained": [True],
            "specimen": [False],
        }


class TestSpecimens:
    """A specimen is held to what the sentence says, and one that cannot fail is no evidence."""

    @pytest.mark.parametrize(
        ("claim", "comparison", "kind", "sparsity", "cost"),
        [("C5", "D6", "relu", 0.95, 1.264), ("C13", "D7", "l1", 0.99, 1.069)],
    )
    def test_a_loss_is_no_lossless_skipping_because_others_lose_more(
        self, studies, claim, comparison, kind, sparsity, cost
    ):
        rows = {**made_up.DYN, "sparsity": sparsity}
        models = made_up.named(studies["specimen"], kind)
        study = made_up.shift(studies["specimen"], np.log(cost), **rows, model=models)
        row = one(study, claim)
        assert row["verdict"] == "contradicted"
        assert row["estimate"] == pytest.approx(cost, rel=0.01)
        assert (row["bound_low"], row["bound_high"]) == pytest.approx((1 / 1.01, 1.01))
        assert one(study, comparison)["verdict"] == "reproduced"

    def test_specimens_are_compared_on_the_same_blocks(self, studies):
        """What blocks share does not count: paired, a difference is as sure as it is steady."""
        study = studies["specimen"]
        table = study.perplexity.copy()
        rows = made_up.where(table, **made_up.DYN, sparsity=0.95, model=["relu", "swiglu"])
        table.loc[rows, "nll"] += made_up.TOKENS * 3.0 * (table["document"] % 2)
        shaken = one(replace(study, perplexity=table, rounding=pd.DataFrame()), "D6")
        plain = one(replace(study, rounding=pd.DataFrame()), "D6")
        for end in ("estimate", "ci_low", "ci_high"):
            assert shaken[end] == pytest.approx(plain[end], rel=0.05)

    def test_accuracy_kept_is_compared_on_the_same_items(self, studies):
        """Two models that lose the same items lose the same, surely."""
        study = studies["specimen"]
        table = study.capability
        same = table["model"].isin(["relu", "swiglu"]) & (table["task"] == "recall")
        lost = same & (table["method"] == "dynamic") & (table["item"] < 100)
        changed = table.assign(
            correct=np.where(same, ~lost & (table["item"] < 500), table["correct"])
        )
        d8 = [claim for claim in claims.CLAIMS if claim.id == "D8"]
        cases = claims.judge(replace(study, capability=changed), d8)[1]
        row = cases[cases["where"] == "recall"].iloc[0]
        assert row["compared"] == "accuracy kept under dynamic magnitude 90%: relu less swiglu"
        assert (row["estimate"], row["ci_low"], row["ci_high"]) == (0, 0, 0)

    @pytest.mark.parametrize("part", ["ffn", "state"])
    def test_a_model_with_an_idle_part_does_not_show_what_two_parts_want(self, studies, part):
        study = studies["specimen"]
        delta = replace(study, models=study.models.query("model == 'deltanet'"))
        assert one(delta, "E3")["verdict"] == "reproduced"
        cost = {"ffn": 0.3, "state": 1.2}[part]
        idle = made_up.shift(
            delta, -cost, site=part, method="static", score="magnitude", sparsity=0.9
        )
        row = one(idle, "E3")
        name = {"ffn": "FFN", "state": "state"}[part]
        assert row["verdict"] == "not tested here"
        assert f"the {name} of deltanet is idle" in row["note"]

    def test_experts_are_compared_where_both_rules_leave_something_out(self, studies):
        cases = claims.judge(studies["specimen"], [c for c in claims.CLAIMS if c.id == "E1"])[1]
        assert set(cases["model"]) == {"moe"}
        assert set(cases["compared"]) == {
            f"dynamic magnitude 87.5% / static {score} 87.5%" for score in ("magnitude", "impact")
        }

    @pytest.mark.parametrize("claim", ["C3", "C12", "C14", "C15", "C16", "D1", "D2"])
    def test_a_delta_rule_is_no_evidence_about_mamba2(self, studies, claim):
        cases = claims.judge(studies["specimen"], [c for c in claims.CLAIMS if c.id == claim])[1]
        assert set(cases["model"]) <= {"mamba2", "hybrid"}

    @pytest.mark.parametrize("claim", ["C9", "C10", "D3"])
    def test_an_idle_ffn_is_no_evidence(self, studies, claim):
        study = studies["specimen"]
        hybrid = replace(study, models=study.models.query("model == 'hybrid'"))
        assert one(hybrid, claim)["verdict"] == "reproduced"
        idle = made_up.shift(
            study, -0.29, site="ffn", method="static", sparsity=0.9, model="hybrid"
        )
        why = "the FFN of hybrid is idle: 90% of it left out for good cost"
        alone = one(replace(idle, models=hybrid.models), claim)
        assert alone["verdict"] == "not tested here"
        # It was run, and says nothing: that is not missing.
        assert f"left out: {why}" in alone["note"]
        assert "missing: the FFN" not in alone["note"]
        if claim != "C9":
            assert f"left out: {why}" in one(idle, claim)["note"]
            assert "hybrid" not in set(claims.judge(idle)[1].query("claim == @claim")["model"])

    def test_a_pretrained_model_is_taken_as_it_is(self, studies):
        study = studies["pretrained"]
        idle = made_up.shift(study, -0.29, site="ffn", method="static", sparsity=0.9)
        assert one(idle, "C9")["verdict"] == "reproduced"


class TestMonotone:
    def test_a_step_that_does_not_rise_is_no_rise(self, studies):
        """However steep the rest is: a trend over all windows would be as sure as before."""
        study = studies["pretrained"]
        table = study.perplexity.copy()
        keys = {"site": "ffn", "method": "windowed", "choice": "oracle", "model": "opt-1.3b"}
        rows = made_up.where(table, **keys, window="8", sparsity=0.9)
        flat = made_up.where(table, **keys, window="64", sparsity=0.9)
        table.loc[flat, "nll"] = table.loc[rows, "nll"].to_numpy()
        wave = 0.5 * np.tile([1, -1], int(flat.sum()) // 2)
        table.loc[flat, "nll"] += made_up.TOKENS * wave
        row = one(replace(study, perplexity=table), "C10")
        assert row["verdict"] == "inconclusive"
        assert row["compared"].endswith("in each of 4 steps, least sure at W=8 to W=64")
        assert row["ci_low"] > 1


class TestRounding:
    def test_what_rounding_adds_is_counted(self, studies):
        """The same text, the same losses: only how far another processor would differ."""
        study = studies["pretrained"]
        models = study.models.query("model == 'opt-1.3b'")
        sure = replace(study, models=models)
        assert one(sure, "C5")["verdict"] == "reproduced"
        rough = replace(sure, rounding=made_up.rounding(study.perplexity, noise=0.1))
        row = one(rough, "C5")
        assert row["verdict"] == "inconclusive"
        assert row["needed"] > row["n"]

    def test_it_may_be_measured_on_some_of_the_text(self, studies):
        """Dynamic rules are run on more text than their draws."""
        study = studies["pretrained"]
        table = study.rounding[study.rounding["block"] < made_up.BLOCKS]
        for claim in ("C5", "C11"):
            some, none = (one(replace(study, rounding=r), claim) for r in (table, table.iloc[:0]))
            assert some["estimate"] == none["estimate"]
            assert some["ci_high"] > none["ci_high"]


class TestCombining:
    def test_one_failing_case_of_many_contradicts(self, studies):
        study = made_up.shift(
            studies["pretrained"], -6, site="ffn", method="static", sparsity=0.9,
            model="opt-1.3b", corpus="docs",
        )  # fmt: skip
        row = one(study, "C4")
        assert row["verdict"] == "contradicted"
        assert (row["fail"], row["hold"], row["cases"]) == (1, 7, 8)
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
        assert "7 of 8 cases hold, 0 fail, 1 open" in row["note"]
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

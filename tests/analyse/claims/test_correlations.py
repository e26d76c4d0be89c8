"""Claims about scores of all units: layers are fixed, text is what is sampled."""

from __future__ import annotations

import math
from dataclasses import replace

import made_up_evidence as made_up
import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

from keepset.analyse import claims


@pytest.fixture(scope="module")
def study():
    return made_up.evidence("pretrained")


def cases_of(evidence, claim: str) -> pd.DataFrame:
    found = [one for one in claims.CLAIMS if one.id == claim]
    return claims.judge(evidence, found)[1]


def note_of(evidence, claim: str) -> str:
    found = [one for one in claims.CLAIMS if one.id == claim]
    return claims.judge(evidence, found)[0].iloc[0]["note"]


@pytest.mark.parametrize("claim", ["C1", "C3"])
def test_a_depth_profile_is_no_noise(study, claim):
    """Layers that differ made the interval of their mean wide, as if they were drawn by chance."""
    table = study.correlation.copy()
    of_layers = table["layer"] >= 0
    table.loc[of_layers, "spearman"] += 0.5 * (-1.0) ** table.loc[of_layers, "layer"]
    plain, profile = (cases_of(one, claim) for one in (study, replace(study, correlation=table)))
    for column in ("estimate", "ci_low", "ci_high", "p_for"):
        np.testing.assert_allclose(profile[column], plain[column], rtol=1e-6, atol=1e-9)


def test_text_that_matters_widens_it(study):
    table = study.correlation.copy()
    left_out = table["left_out"] >= 0
    table.loc[left_out, "spearman"] += 0.05 * table.loc[left_out, "left_out"]
    plain, moved = (cases_of(one, "C1") for one in (study, replace(study, correlation=table)))
    assert ((moved["ci_high"] - moved["ci_low"]) > 5 * (plain["ci_high"] - plain["ci_low"])).all()
    groups = made_up.GROUPS
    moves = 0.05 * np.arange(groups)
    error = math.sqrt((groups - 1) / groups * np.sum((moves - moves.mean()) ** 2))
    half = scipy_stats.t.ppf(0.975, groups - 1) * error
    assert (moved["ci_high"] - moved["estimate"]).to_numpy() == pytest.approx(half, rel=0.1)


@pytest.mark.parametrize("claim", ["C1", "C2", "C3", "C14"])
def test_more_calibration_documents_than_there_are_cannot_be_had(study, claim):
    rng = np.random.default_rng(0)
    correlation, channels = study.correlation.copy(), study.channels.copy()
    rows = correlation["left_out"] >= 0
    correlation.loc[rows, "spearman"] += rng.normal(0, 0.4, rows.sum())
    without_first = channels["left_out"] == 0
    channels.loc[without_first, "energy"] = channels.loc[without_first, "magnitude"]
    unsure = replace(study, correlation=correlation, channels=channels)
    corpora = {*study.correlation["corpus"], *study.channels["corpus"]}
    few = replace(unsure, calibration_documents=dict.fromkeys(corpora, made_up.GROUPS))
    assert np.isfinite(cases_of(unsure, claim)["needed"]).any()
    assert not np.isfinite(cases_of(few, claim)["needed"]).any()
    assert f"and only {made_up.GROUPS} can be had" in note_of(few, claim)


@pytest.mark.parametrize("claim", ["C1", "C2", "C3", "C14"])
def test_one_document_has_no_interval_and_says_so(study, claim):
    def of_one_document(table):
        return table[table["left_out"] == -1].assign(n_documents=1)

    alone = replace(
        study,
        correlation=of_one_document(study.correlation),
        channels=of_one_document(study.channels),
    )
    cases = cases_of(alone, claim)
    assert len(cases)
    assert cases["compared"].str.endswith("; one document: no interval").all()
    assert cases[["ci_low", "ci_high", "p_for", "p_against"]].isna().all(axis=None)
    assert (cases["verdict"] == "inconclusive").all()
    assert cases["estimate"].notna().all()


def test_corpora_are_compared_on_the_layers_that_both_know(study):
    table = study.correlation.copy()
    table.loc[(table["corpus"] == "docs") & (table["layer"] == 3), "spearman"] = np.nan
    table.loc[table["layer"] == 3, "spearman"] += 0.9
    found = cases_of(replace(study, correlation=table), "C2")
    assert (found["estimate"].abs() < 0.05).all()
    assert set(found["test"]) == {"Welch's t-test"}


class TestHandMadeStates:
    """A specimen that started from a circuit of the state is no evidence about its weights."""

    @pytest.fixture(scope="class")
    @classmethod
    def made(cls):
        study = made_up.evidence("specimen")
        models = study.models
        return replace(study, models=models.assign(induction=models["architecture"] == "hybrid"))

    @pytest.mark.parametrize("claim", ["C3", "C14"])
    def test_does_not_count(self, made, claim):
        assert set(cases_of(made, claim)["model"]) == {"mamba2"}

    @pytest.mark.parametrize("claim", ["C3", "C14"])
    def test_is_named_where_there_is_no_other(self, made, claim):
        alone = replace(made, models=made.models.query("model == 'hybrid'"))
        assert "the training of hybrid started from a hand-made circuit" in note_of(alone, claim)

    @pytest.mark.parametrize("claim", ["C12", "D1", "C15"])
    def test_counts_where_memory_is_what_is_asked_for(self, made, claim):
        assert "hybrid" in set(cases_of(made, claim)["model"])


def test_disagreement_is_judged_once(study):
    """Phantom, corporeal and disagreement are one number by arithmetic."""
    found = cases_of(study, "C14")
    assert found["compared"].tolist() == ["share of channels: disagree at half"] * len(found)
    assert found.groupby(["model", "where"]).size().eq(1).all()
    assert found[["bound_low", "bound_high"]].drop_duplicates().to_numpy().tolist() == [[0.3, 0.5]]


class TestTextOfTheScores:
    def test_taylor_from_other_text_is_a_claim_of_its_own(self, study):
        """Matched, Taylor is nearly what is measured; on other text it may say nothing."""
        rng = np.random.default_rng(1)
        table = study.ablations
        blind = replace(study, ablations=table.assign(taylor_other=rng.random(len(table))))
        assert (cases_of(blind, "D4")["verdict"] == "reproduced").all()
        assert (cases_of(blind, "D5")["verdict"] != "reproduced").all()

    def test_without_other_text_it_is_not_tested(self, study):
        table = study.ablations
        others = [name for name in table if name.endswith("_other")]
        alone = replace(study, ablations=table.assign(**dict.fromkeys(others, np.nan)))
        assert "the Taylor score on other text of the ablated units" in note_of(alone, "D5")
        assert len(cases_of(alone, "D4"))

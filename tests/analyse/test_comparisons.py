from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats

import made_up_state
from keepset.analyse import accuracies, comparisons, significance, stats
from keepset.errors import KeepsetError
from keepset.settings import Statistics

STATISTICS = Statistics()


def pick(table: pd.DataFrame, **values: object) -> pd.DataFrame:
    for column, value in values.items():
        table = table[table[column] == value]
    return table


@pytest.fixture(scope="module")
def recall() -> pd.DataFrame:
    return made_up_state.recall(["mamba2", "hybrid"])


@pytest.fixture(scope="module")
def perplexity() -> pd.DataFrame:
    table = made_up_state.perplexity(["mamba2", "hybrid"])
    held = table["method"].isin(["windowed"])
    return table[~held & table["sparsity"].isin([0.0, 0.5, 0.7, 0.9])]


@pytest.fixture(scope="module")
def recalled(recall) -> pd.DataFrame:
    return comparisons.recall_table(recall, STATISTICS, 1 / 64)


@pytest.fixture(scope="module")
def pairs(perplexity, recall) -> pd.DataFrame:
    return comparisons.state_pairs(perplexity, recall, STATISTICS)


@pytest.fixture(scope="module")
def ratios(perplexity) -> pd.DataFrame:
    tested = significance.test_significance(perplexity, pd.DataFrame(), STATISTICS, pd.DataFrame())
    return tested["ratios"]


class TestRecall:
    def test_one_row_by_hand(self, recalled, recall):
        rule = {"model": "mamba2", "score": "ghost", "sparsity": 0.9, "n_facts": 4}
        for distance in (24, comparisons.POOLED):
            row = pick(recalled, **rule, distance=distance).iloc[0]
            items = pick(recall, **rule)
            items = items if distance == comparisons.POOLED else pick(items, distance=distance)
            right, n = int(items["correct"].sum()), len(items)
            assert (row["n"], row["accuracy"], row["chance"]) == (n, right / n, 1 / 64)
            expected = tuple(accuracies.wilson(right, n, 0.95))
            assert (row["ci_low"], row["ci_high"]) == pytest.approx(expected)

    def test_every_setting_number_and_distance_once(self, recalled):
        keys = ["model", "site", *significance.SETTING, "n_facts", "distance"]
        assert not recalled.duplicated(keys).any()
        assert set(recalled["distance"]) == {-1, 0, 24, 48}
        assert len(pick(recalled, model="hybrid", method="dense")) == 2 * 4 * 4  # ffn and state

    def test_seeds_of_random_are_averaged(self, recalled, recall):
        rule = {"model": "mamba2", "score": "random", "sparsity": 0.3, "n_facts": 2}
        row = pick(recalled, **rule, distance=-1).iloc[0]
        means = pick(recall, **rule).groupby("seed")["correct"].mean()
        assert (row["seeds"], row["n"]) == (5, 30)
        assert row["accuracy"] == pytest.approx(means.mean())
        assert (row["accuracy_min"], row["accuracy_max"]) == (means.min(), means.max())

    def test_other_tasks_are_passed_over(self, recall):
        words = recall.assign(n_facts=pd.NA, task="last-word")
        assert not len(comparisons.recall_table(words, STATISTICS, 1 / 64))
        assert not len(comparisons.recall_table(pd.DataFrame(), STATISTICS, 1 / 64))


class TestPairs:
    def test_perplexity_by_hand(self, pairs, perplexity):
        row = pick(pairs, model="mamba2", measure="perplexity", rival="magnitude", sparsity=0.9)
        cell = pick(perplexity, model="mamba2", site="state", method="static", sparsity=0.9)
        a, b = (pick(cell, score=s)["nll"].to_numpy() for s in ("ghost", "magnitude"))
        # Documents of equal length: the ratio estimator's t-test is that of their means.
        expected = scipy_stats.ttest_rel(a / 127, b / 127)
        ends = np.exp(expected.confidence_interval(0.95))
        got = row.iloc[0]
        assert (got["ci_low"], got["ci_high"]) == pytest.approx(tuple(ends), rel=1e-9)
        assert got["p"] == pytest.approx(expected.pvalue, rel=1e-9)
        assert got["n"] == 8
        assert got["value"] / got["value_rival"] == pytest.approx(got["effect"])

    def test_accuracy_by_hand(self, pairs, recall):
        row = pick(pairs, model="hybrid", measure="accuracy", rival="taylor", sparsity=0.7).iloc[0]
        cell = pick(recall, model="hybrid", method="static", site="state", sparsity=0.7)
        a, b = (pick(cell, score=s)["correct"].to_numpy() for s in ("ghost", "taylor"))
        assert row["effect"] == pytest.approx(a.mean() - b.mean())
        assert (row["ci_low"], row["ci_high"]) == accuracies.paired_difference(a, b, 0.95)
        assert row["p"] == accuracies.mcnemar_exact(a, b).p

    def test_every_sparsity_and_rival(self, pairs):
        rows = pick(pairs, model="mamba2", measure="perplexity")
        assert len(rows) == 3 * 3
        rows = pick(pairs, model="mamba2", measure="accuracy", rival="random")
        assert len(rows) == 5 * 5  # sparsities x seeds

    def test_holm_family_is_model_and_text(self, pairs):
        for _, family in pairs.groupby(["model", "text"]):
            assert family["p_holm"].to_numpy() == pytest.approx(stats.holm(family["p"]))

    def test_verdicts(self, pairs):
        better = pick(pairs, measure="perplexity", sparsity=0.9, rival="random")
        assert set(better["verdict"]) == {"better"}
        told = pairs[pairs["verdict"] != "not told apart"]
        assert (told["p_holm"] < 0.05).all()
        swapped = comparisons.state_pairs(
            made_up_state.perplexity(["mamba2"]).replace(
                {"score": {"ghost": "random", "random": "ghost"}}
            ),
            pd.DataFrame(), STATISTICS,
        )  # fmt: skip
        assert set(pick(swapped, sparsity=0.9, rival="random")["verdict"]) == {"worse"}

    def test_items_that_differ(self, perplexity, recall):
        gone = (recall["score"] == "taylor") & (recall["item"] == 3)
        with pytest.raises(KeepsetError, match="the items of two scores differ"):
            comparisons.state_pairs(perplexity, recall[~gone], STATISTICS)

    def test_models_without_a_state(self, recall):
        ffn = pick(recall, model="hybrid")
        ffn = ffn[ffn["site"] != "state"]
        assert not len(comparisons.state_pairs(pd.DataFrame(), ffn, STATISTICS))


class TestLengths:
    def test_each_length_against_dense_at_its_own(self):
        lengths = made_up_state.lengths(["mamba2"])
        found = comparisons.length_ratios(lengths, STATISTICS)
        for n in (128, 256, 512):
            cell = pick(lengths, length=n)
            dense = pick(cell, method="dense")["nll"].sum()
            here = pick(cell, score="ghost", sparsity=0.9)["nll"].sum()
            row = pick(found, length=n, score="ghost", sparsity=0.9).iloc[0]
            assert row["ratio"] == pytest.approx(np.exp((here - dense) / (16 * 127)))
            assert row["n_blocks"] == row["n_documents"] == 16 * 128 // n
        assert found["p_holm"].to_numpy() == pytest.approx(stats.holm(found["p"]))

    def test_nothing(self):
        assert not len(comparisons.length_ratios(pd.DataFrame(), STATISTICS))


class TestSideBySide:
    def test_the_eight_cells(self, ratios):
        found = comparisons.side_by_side(ratios)
        assert set(found["model"]) == {"hybrid"}
        cells = found.groupby(["part", "persistence", "by"])["access"].agg(set)
        assert len(cells) == 8
        assert cells["memory", "dynamic", "impact"] == {"read", "write"}
        assert cells["memory", "static", "size"] == {"both"}

    def test_scores_of_size_and_impact(self, ratios):
        found = comparisons.side_by_side(ratios)
        impact = pick(found, by="impact").groupby(["part", "persistence"])["score"].agg(set)
        assert impact["memory", "static"] == {"ghost"}
        assert impact["memory", "dynamic"] == {"impact"}
        assert set(pick(found, by="size")["score"]) == {"magnitude"}

    def test_shared_sparsities_only(self, ratios):
        assert set(comparisons.side_by_side(ratios)["sparsity"]) == {0.5, 0.9}
        apart = ratios.assign(sparsity=ratios["sparsity"] + 0.01 * (ratios["site"] == "ffn"))
        assert len(set(comparisons.side_by_side(apart)["sparsity"])) > 2

    def test_no_model_has_both(self, ratios):
        assert not len(comparisons.side_by_side(pick(ratios, model="mamba2")))
        assert not len(comparisons.side_by_side(ratios.iloc[:0]))

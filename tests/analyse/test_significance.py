from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.weightstats import ttost_paired
from tested import STATIC, pick, run

from keepset.analyse import accuracies, significance, stats
from keepset.errors import KeepsetError


class TestRatios:
    def test_one_row_by_hand(self, found, perplexity):
        row = pick(found["ratios"], model="relu", corpus="wiki", **STATIC).iloc[0]
        cell = pick(perplexity, model="relu", corpus="wiki")
        dense, here = pick(cell, method="dense")["nll"], pick(cell, **STATIC)["nll"]
        assert row["ppl"] == pytest.approx(np.exp(here.sum() / (8 * 255)))
        assert row["ratio"] == pytest.approx(row["ppl"] / row["ppl_dense"])
        assert row["word_ppl"] == pytest.approx(np.exp(here.sum() / (8 * 190)))
        assert row["bits_per_byte"] == pytest.approx(here.sum() / np.log(2) / (8 * 1130))
        assert row["bits_per_byte_dense"] == pytest.approx(dense.sum() / np.log(2) / (8 * 1130))
        assert row["ci_low"] < row["ratio"] < row["ci_high"]
        assert (row["n_blocks"], row["n_documents"], row["n_tokens"]) == (8, 8, 8 * 255)
        assert np.isnan(row["rounding"])
        expected = scipy_stats.ttest_rel(here / 255, dense / 255)
        ends = np.exp(expected.confidence_interval(0.95))
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(ends), rel=1e-9)
        assert row["p"] == pytest.approx(expected.pvalue, rel=1e-9)
        margin = np.log(1.01)
        here, dense = (nll.to_numpy() / 255 for nll in (here, dense))
        expected = ttost_paired(here, dense, -margin, margin)[0]
        assert row["p_equivalence"] == pytest.approx(expected, rel=1e-9)

    def test_every_setting_once(self, found, perplexity):
        keys = ["model", "corpus", *significance.SETTING]
        perplexity = significance.with_access(perplexity)
        sparse = perplexity[perplexity["method"] != "dense"]
        assert len(found["ratios"]) == len(sparse.drop_duplicates(keys))
        assert not found["ratios"].duplicated(keys).any()

    def test_holm_family_is_model_and_corpus(self, found):
        for _, family in found["ratios"].groupby(["model", "corpus"]):
            assert family["p_holm"].to_numpy() == pytest.approx(stats.holm(family["p"]))

    def test_seeds_are_pooled_and_their_spread_shown(self, found, perplexity):
        setting = {"score": "random", "method": "static", "sparsity": 0.8}
        row = pick(found["ratios"], model="relu", corpus="wiki", **setting).iloc[0]
        cell = pick(perplexity, model="relu", corpus="wiki")
        totals = pick(cell, **setting).groupby("seed")["nll"].sum()
        ratios = np.exp((totals - pick(cell, method="dense")["nll"].sum()) / (8 * 255))
        assert row["seeds"] == 5
        assert (row["ratio_min"], row["ratio_max"]) == pytest.approx((ratios.min(), ratios.max()))
        assert row["ratio"] == pytest.approx(np.exp(np.log(ratios).mean()))

    def test_unchanged_is_equivalent_and_not_significant(self, small, capability):
        dense = pick(small, method="dense")
        same = dense.assign(method="dynamic", score="magnitude", window="1", choice="oracle")
        row = run(pd.concat([dense, same]), capability)["ratios"].iloc[0]
        assert row[["ratio", "ci_low", "ci_high", "p_holm"]].tolist() == [1.0] * 4
        assert row["equivalent"]

    def test_row_order_does_not_matter(self, small, capability):
        tables = [run(t, capability) for t in (small, small.sample(frac=1, random_state=0))]
        keys = ["model", "corpus", *significance.SETTING]
        left, right = (t["ratios"].sort_values(keys, ignore_index=True) for t in tables)
        pd.testing.assert_frame_equal(left, right)


class TestCapability:
    def test_one_row_by_hand(self, found, capability):
        row = pick(found["capability"], model="smollm2-135m", method="static").iloc[0]
        cell = pick(capability, model="smollm2-135m")
        dense = pick(cell, method="dense")["correct"].to_numpy()
        here = pick(cell, method="static")["correct"].to_numpy()
        assert row["accuracy"] == here.mean()
        assert row["accuracy_dense"] == dense.mean()
        assert row["difference"] == pytest.approx(here.mean() - dense.mean())
        assert (row["ci_low"], row["ci_high"]) == accuracies.wilson(here.sum(), 300, 0.95)
        assert (row["only_here"], row["only_dense"]) == (0, (dense & ~here).sum())
        assert row["diff_low"] < row["difference"] < row["diff_high"] < 0
        assert row["p_holm"] < 0.001
        assert not row["equivalent"]

    def test_dense_has_accuracy_and_no_test(self, found):
        dense = pick(found["capability"], method="dense")
        assert dense["accuracy"].notna().all()
        assert dense[["difference", "p", "p_holm", "equivalent"]].isna().all(axis=None)

    def test_holm_family_is_model_and_task(self, found):
        for _, family in found["capability"].groupby(["model", "task"]):
            assert family["p_holm"].to_numpy() == pytest.approx(
                stats.holm(family["p"]), nan_ok=True
            )

    def test_the_same_answers_are_equivalent(self, capability, small):
        dense = pick(capability, model="relu", method="dense")
        same = dense.assign(method="dynamic", window="1")
        row = run(small, pd.concat([dense, same]))["capability"].iloc[1]
        assert row["p"] == 1.0
        assert row["equivalent"]
        assert row["diff_high"] > 0.01


class TestTables:
    def test_parquet_keeps_them(self, found, tmp_path):
        for name, table in found.items():
            table.to_parquet(tmp_path / name)
            pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / name), table)

    def test_nothing_measured(self):
        found = run(pd.DataFrame(), pd.DataFrame())
        assert {name: len(table) for name, table in found.items()} == dict.fromkeys(found, 0)
        assert "ci_low" in found["ratios"]

    def test_one_block(self, small, capability):
        row = run(pick(small, block=0), capability)["ratios"].iloc[0]
        assert row[["ci_low", "p", "p_holm"]].isna().all()
        assert not row["equivalent"]


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.drop(columns="nll"), "perplexity table: missing column nll"),
            (lambda t: t[t["method"] != "dense"], "made-up .* one dense row per block"),
            (lambda t: pd.concat([t, t]), "one dense row per block"),
            (lambda t: t[(t["method"] != "static") | (t["block"] != 2)], "static .* not those of"),
            (lambda t: t.assign(n_tokens=t["n_tokens"] + t["sparsity"]), "not those of dense"),
            (lambda t: t.assign(nll=t["nll"].where(t["window"] != "4", np.inf)), "4 .*not finite"),
            (
                lambda t: t.assign(nll=t["nll"].where(t["method"] != "dense")),
                "made-up .* dense: nll is not finite; run the model in float32",
            ),
        ],
    )
    def test_perplexity(self, small, capability, change, message):
        with pytest.raises(KeepsetError, match=message):
            run(change(small), capability)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.drop(columns="item"), "capability table: missing column item"),
            (lambda t: t[t["method"] != "dense"], "one dense row per item"),
            (lambda t: t[(t["method"] != "static") | (t["item"] != 2)], "static .* not those of"),
            *(
                (
                    lambda t, method=method: t.assign(
                        logprob=t["logprob"].where(t["method"] != method)
                    ),
                    f"{method}.*: logprob is not finite; run the model in float32",
                )
                for method in ("dense", "dynamic")
            ),
        ],
    )
    def test_capability(self, small, capability, change, message):
        with pytest.raises(KeepsetError, match=message):
            run(small, change(capability))


class TestSites:
    """Dense rows serve every site; `access` is part of a setting."""

    @pytest.fixture
    def hybrid(self, small):
        ffn = small.assign(access="none")
        state = pick(ffn, method="static", score="magnitude").assign(site="state", access="both")
        reading = pick(ffn, method="dynamic", score="magnitude")
        parts = [reading.assign(site="state", access=how) for how in ("read", "write")]
        parts[1]["nll"] += 50
        return ffn, pd.concat([state, *parts])

    @pytest.mark.parametrize("dense", ["ffn", "none", "each"])
    def test_dense_rows_of_any_site(self, hybrid, capability, dense):
        ffn, state = hybrid
        runs = pick(ffn, method="dense")
        rest = pd.concat([ffn[ffn["method"] != "dense"], state])
        sites = ["ffn", "state"] if dense == "each" else [dense]
        table = pd.concat([rest, *(runs.assign(site=site) for site in sites)])
        ratios = run(table, capability)["ratios"]
        assert set(ratios["site"]) == {"ffn", "state"}
        same = {"method": "static", "score": "magnitude", "sparsity": 0.9}
        assert pick(ratios, **same)["ratio"].nunique() == 1
        assert len(pick(ratios, **same)) == 2

    def test_reading_and_writing_are_two_settings(self, hybrid, capability):
        ratios = run(pd.concat(hybrid), capability)["ratios"]
        state = pick(ratios, site="state", method="dynamic", sparsity=0.9).set_index("access")
        assert state.loc["write", "ratio"] > state.loc["read", "ratio"]

    def test_tables_without_the_column(self, hybrid, capability):
        old = hybrid[0].drop(columns="access")
        mixed = pd.concat([old, hybrid[1]])
        assert set(run(old, capability)["ratios"]["access"]) == {"none"}
        assert set(run(mixed, capability)["ratios"]["access"]) == {"none", "both", "read", "write"}

    def test_capability_has_dense_once_per_site(self, capability, small):
        state = pick(capability, method="static").assign(site="state", access="both")
        found = run(small, pd.concat([capability, state]))["capability"]
        dense = pick(found, method="dense", model="relu")
        assert sorted(dense["site"]) == ["ffn", "state"]
        assert pick(found, site="state", method="static")["difference"].notna().all()

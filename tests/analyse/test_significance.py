from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from statsmodels.stats.weightstats import ttost_paired

import made_up
from keepset.analyse import accuracies, significance, stats
from keepset.errors import KeepsetError
from keepset.settings import Statistics

STATISTICS = Statistics()


def run(
    perplexity: pd.DataFrame, capability: pd.DataFrame, rounding: pd.DataFrame | None = None
) -> dict[str, pd.DataFrame]:
    runs = pd.DataFrame() if rounding is None else rounding
    return significance.test_significance(perplexity, capability, STATISTICS, runs)


@pytest.fixture(scope="module")
def perplexity() -> pd.DataFrame:
    return made_up.perplexity(["smollm2-135m", "relu"], ("wiki", "docs"))


@pytest.fixture(scope="module")
def small() -> pd.DataFrame:
    return made_up.perplexity(["relu"], ("wiki", "docs")).query("corpus == 'docs'")


@pytest.fixture(scope="module")
def capability() -> pd.DataFrame:
    return made_up.capability(["smollm2-135m", "relu"])


@pytest.fixture(scope="module")
def found(perplexity, capability) -> dict[str, pd.DataFrame]:
    return run(perplexity, capability)


def pick(table: pd.DataFrame, **values: object) -> pd.DataFrame:
    for column, value in values.items():
        table = table[table[column] == value]
    return table


STATIC = {"method": "static", "score": "magnitude", "sparsity": 0.9}


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


def flat_dials(rho: float, dials: int) -> pd.DataFrame:
    """Dials on which nothing rises, and neighbouring windows are alike: one sparsity for each."""
    rng = np.random.default_rng(5)
    windows = ["1", "2", "4", "8", "16", "32", "64", "128", "sequence"]
    distance = np.abs(np.subtract.outer(np.arange(9), np.arange(9)))
    likeness = np.linalg.cholesky(rho**distance)
    text = {"study": "made-up", "model": "m", "origin": "specimen", "corpus": "c", "seed": 0}
    text |= {"block": range(16), "document": range(16), "n_tokens": 255}
    text |= {"n_words": 190, "n_bytes": 1130}
    parts = [pd.DataFrame({**text, "site": "none", **made_up.DENSE, "nll": 800.0})]
    for sparsity in np.linspace(0.1, 0.9, dials):
        nll = 900 + 10 * rng.normal(size=(16, 9)) @ likeness.T
        for at, window in enumerate(windows):
            setting = {"score": "magnitude", "sparsity": sparsity, "window": window}
            setting |= {"method": "windowed" if at else "dynamic", "choice": "oracle"}
            parts.append(pd.DataFrame({**text, "site": "ffn", **setting, "nll": nll[:, at]}))
    return pd.concat(parts, ignore_index=True)


class TestTrend:
    def test_rises(self, found):
        trend = pick(found["trend"], choice="oracle")
        assert (trend["slope"] > 0).all()
        assert (trend["ci_low"] > 0).all()
        assert (trend["p_holm"] < 0.001).all()
        assert set(trend["windows"]) == {"1,2,4,8,16,32,64,128,sequence"}

    def test_one_row_by_hand(self, found, perplexity):
        row = pick(found["trend"], model="relu", corpus="docs", choice="oracle").iloc[0]
        cell = pick(perplexity, model="relu", corpus="docs", sparsity=0.9, score="magnitude")
        dial = pick(cell[cell["method"] != "static"], choice="oracle")
        loss = dial.pivot(index="block", columns="window", values="nll")[row["windows"].split(",")]
        loss /= 255
        doublings = np.log2([1, 2, 4, 8, 16, 32, 64, 128, 255])
        slopes = [scipy_stats.linregress(doublings, block).slope for block in loss.to_numpy()]
        test = scipy_stats.ttest_1samp(slopes, 0, alternative="greater")
        ends = scipy_stats.ttest_1samp(slopes, 0).confidence_interval(0.95)
        assert row["slope"] == pytest.approx(np.mean(slopes))
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(ends), rel=1e-9)
        assert row["p"] == pytest.approx(test.pvalue, rel=1e-9)
        steps = np.diff(loss.to_numpy(), axis=1).T
        rises = [scipy_stats.ttest_1samp(s, 0, alternative="greater").pvalue for s in steps]
        falls = [scipy_stats.ttest_1samp(s, 0, alternative="less").pvalue for s in steps]
        assert row["p_monotone"] == pytest.approx(max(rises), rel=1e-9)
        assert row["p_fall"] == pytest.approx(min(1.0, 8 * min(falls)), rel=1e-9)

    def test_windows_that_are_alike_are_no_trend(self):
        trend = run(flat_dials(0.99, 60), pd.DataFrame())["trend"]
        assert len(trend) == 60
        assert (trend["p"] < 0.05).mean() < 0.12
        assert (trend["monotone"] != "yes").all()

    def test_a_rise_in_the_sum_alone_is_not_monotone(self, small, capability):
        # Every step rises in sum, the last by less than its documents differ.
        level = pick(small, window="128", sparsity=0.9, choice="oracle")["nll"].to_numpy()
        wide = np.array([60.0, -55.0] * 4)
        bent = small.copy()
        last = (bent["window"] == "sequence") & (bent["choice"] == "oracle")
        for sparsity in (0.9,):
            here = last & (bent["sparsity"] == sparsity)
            bent.loc[here, "nll"] = level + wide
        trend = pick(run(bent, capability)["trend"], choice="oracle", sparsity=0.9).iloc[0]
        assert trend["p_holm"] < 0.001
        assert trend["monotone"] == "open"

    def test_holm_family_is_model_and_corpus(self, found):
        for _, family in found["trend"].groupby(["model", "corpus"]):
            for name in ("p", "p_monotone", "p_fall"):
                expected = stats.holm(family[name])
                assert family[f"{name}_holm"].to_numpy() == pytest.approx(expected)

    def test_dynamic_starts_the_oracle_dial_only(self, small, capability):
        without = small[small["method"] != "dynamic"]
        trend = run(without, capability)["trend"]
        assert set(pick(trend, choice="oracle")["windows"]) == {"2,4,8,16,32,64,128,sequence"}
        assert set(pick(trend, choice="causal")["windows"]) == {"1,2,4,8,16,32,64,128,sequence"}

    def test_settings_without_a_dial_have_no_row(self, found):
        docs = pick(found["trend"], corpus="docs")
        assert set(docs["sparsity"]) == {0.9}
        assert set(docs["score"]) == {"magnitude"}

    def test_a_step_down_is_not_monotone(self, small, capability):
        bent = small.copy()
        bent.loc[bent["window"] == "8", "nll"] -= 2000
        assert set(run(bent, capability)["trend"]["monotone"]) == {"no"}

    def test_missing_window(self, small, capability):
        gone = small[(small["window"] != "8") | (small["block"] != 3)]
        with pytest.raises(KeepsetError, match=r"relu|smollm2.*not those of dense"):
            run(gone, capability)


class TestDocuments:
    """Blocks of one document are alike: what is counted is documents."""

    def test_blocks_of_few_documents_do_not_narrow_the_interval(self, small, capability):
        two = small.assign(document=small["block"] // 4)
        row = pick(run(two, capability)["ratios"], **STATIC).iloc[0]
        cell = [pick(two, method="dense"), pick(two, **STATIC)]
        dense, here = (part.groupby("document")["nll"].sum() / (4 * 255) for part in cell)
        ends = np.exp(scipy_stats.ttest_rel(here, dense).confidence_interval(0.95))
        assert (row["n_blocks"], row["n_documents"]) == (8, 2)
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(ends), rel=1e-9)

    def test_blocks_of_one_document_have_no_test(self, small, capability):
        found = run(small.assign(document=0), capability)
        unknown = found["ratios"][["ci_low", "ci_high", "p", "p_holm", "p_equivalence"]]
        assert unknown.isna().all(axis=None)
        assert not found["ratios"]["equivalent"].any()
        assert set(found["trend"]["monotone"]) == {"open"}

    def test_documents_of_a_setting_are_those_of_dense(self, small, capability):
        moved = small.assign(document=small["document"] + (small["method"] == "static"))
        with pytest.raises(KeepsetError, match=r"static .* blocks are not those of dense"):
            run(moved, capability)

    def test_a_rule_may_be_run_on_the_first_blocks_only(self, small, capability):
        ways = small["method"].isin(["dense", "dynamic"])
        core = small[ways | (small["block"] < 5)]
        ratios = run(core, capability)["ratios"].set_index("method")
        assert set(ratios.loc["dynamic", "n_blocks"]) == {8}
        assert set(ratios.loc["static", "n_blocks"]) == {5}
        first = run(small[small["block"] < 5], capability)
        static = pick(ratios.reset_index(), method="static").reset_index(drop=True)
        alone = pick(first["ratios"], method="static").reset_index(drop=True)
        same = ["ppl_dense", "ratio", "ci_low", "ci_high", "p"]
        pd.testing.assert_frame_equal(static[same], alone[same])
        # The dial is tested on the blocks that all of its windows have.
        trend, expected = run(core, capability)["trend"], first["trend"]
        pd.testing.assert_frame_equal(trend, expected)


class TestRounding:
    @pytest.fixture
    def rounding(self, small):
        """Dynamic rules again, in three draws that differ by whole nats."""
        dynamic = pick(small, method="dynamic")
        return pd.concat(
            [
                dynamic.assign(draw=k, nll=dynamic["nll"] + shift)
                for k, shift in ((1, 1), (2, 5), (3, 3))
            ]
        )

    def test_spread_over_draws_is_shown_and_added(self, small, capability, rounding):
        without, within = (run(small, capability, runs)["ratios"] for runs in (None, rounding))
        dynamic, static = (pick(within, method=method) for method in ("dynamic", "static"))
        spread = np.std([8 / 2040, 40 / 2040, 24 / 2040], ddof=1)
        assert dynamic["rounding"].to_numpy() == pytest.approx(spread)
        assert static["rounding"].isna().all()
        plain = pick(without, method="dynamic")
        assert (dynamic["ci_high"] > plain["ci_high"]).all()
        before = pick(without, method="static")
        assert static.drop(columns="p_holm").equals(before.drop(columns="p_holm"))

    def test_sameness_is_not_shown_through_its_noise(self, small, capability, rounding):
        dense = pick(small, method="dense")
        same = pick(small, method="dynamic", score="magnitude", sparsity=0.9).copy()
        same["nll"] = dense["nll"].to_numpy() + np.linspace(-1, 1, 8)
        runs = pick(rounding, score="magnitude", sparsity=0.9).copy()
        runs["nll"] = np.tile(same["nll"], 3) + 10.0 * (runs["draw"] - 2)
        without, within = (
            run(pd.concat([dense, same]), capability, table)["ratios"].iloc[0]
            for table in (None, runs)
        )
        assert without["equivalent"]
        assert not within["equivalent"]
        # Satterthwaite: the variance of the text with 7 degrees of freedom, of rounding with 2.
        text, noise = np.linspace(-1, 1, 8).var(ddof=1) / 8 / 255**2, (10 / 255) ** 2
        df = (text + noise) ** 2 / (text**2 / 7 + noise**2 / 2)
        expected = scipy_stats.t.sf(np.log(1.01) / np.sqrt(text + noise), df)
        assert within["p_equivalence"] == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda t: t.drop(columns="draw"), "rounding table: missing column draw"),
            (lambda t: t[t["draw"] == 1], "rounding_draws to 2 or more"),
            (lambda t: t[t["block"] != 3], "rounding was not measured on its blocks"),
            (lambda t: t.assign(nll=np.nan), "not finite"),
        ],
    )
    def test_bad_tables(self, small, capability, rounding, change, message):
        with pytest.raises(KeepsetError, match=message):
            run(small, capability, change(rounding))


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

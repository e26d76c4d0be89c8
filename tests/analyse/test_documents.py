from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from tested import STATIC, pick, run

from keepset.errors import KeepsetError


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

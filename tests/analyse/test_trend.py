from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from tested import pick, run

import made_up
from keepset.analyse import stats
from keepset.errors import KeepsetError


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
        bent.loc[last & (bent["sparsity"] == 0.9), "nll"] = level + wide
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

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from keepset.analyse.correlation import correlation_table
from keepset.rules.kinds import KINDS
from keepset.settings import Statistics


def units_of(layers, per_layer, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "layer": np.repeat(range(layers), per_layer),
            "unit": np.tile(range(per_layer), layers),
            "magnitude": rng.exponential(size=layers * per_layer),
        }
    )


def test_correlations_are_those_of_scipy():
    from scipy.stats import kendalltau, pearsonr, spearmanr

    units = units_of(layers=3, per_layer=40)
    rng = np.random.default_rng(3)
    units["weight"] = rng.normal(size=len(units))
    units["output"] = units["magnitude"] * units["weight"].abs()
    ablated = units.iloc[::5].assign(loss=lambda table: table["output"] + 0.1)
    identity = {"study": "s", "model": "m", "corpus": "c"}
    table = correlation_table(KINDS["ffn"], units, Statistics(resamples=199), 1, identity, ablated)
    assert list(table.columns[:6]) == ["study", "model", "corpus", "site", "size", "impact"]
    assert set(table["impact"]) == {"weight", "output", "loss"}
    for impact, source in (("weight", units), ("output", units), ("loss", ablated)):
        row = table.query("impact == @impact and layer == 0").iloc[0]
        rows = source[source["layer"] == 0]
        size, value = rows["magnitude"], rows[impact]
        assert row["pearson"] == pytest.approx(pearsonr(size, value)[0])
        assert row["spearman"] == pytest.approx(spearmanr(size, value)[0])
        assert row["kendall"] == pytest.approx(kendalltau(size, value)[0])
        assert row["n_units"] == len(rows)
        assert row["ci_low"] <= row["spearman"] <= row["ci_high"]
    assert not math.isnan(table.query("layer == -1")["spearman"].iloc[0])


def test_each_size_is_set_against_each_impact_that_was_taken():
    rng = np.random.default_rng(3)
    columns = ["magnitude", "controllability", "energy", "observability"]
    channels = pd.DataFrame(rng.random((40, 4)), columns=columns).assign(layer=0)
    table = correlation_table(KINDS["state"], channels, Statistics(resamples=99), 1, {})
    pairs = table.loc[table["layer"] == 0, ["site", "size", "impact"]]
    assert pairs.to_numpy().tolist() == [
        ["state", size, impact] for size in columns[:2] for impact in ("ghost", "observability")
    ]
    assert correlation_table(KINDS["state"], pd.DataFrame(), Statistics(), 1, {}).empty

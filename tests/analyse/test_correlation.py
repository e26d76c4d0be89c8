from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from keepset.analyse.correlation import (
    correlation_table,
    measure_ablations,
    sample_units,
    unit_table,
)
from keepset.measure.runner import Runner
from keepset.settings import Statistics
from keepset.sites import find_sites


def nll(model, ids):
    """Nats per predicted token, by transformers alone."""
    with torch.inference_mode():
        return float(model(input_ids=ids, labels=ids).loss)


def units_of(layers, per_layer, seed=0):
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "layer": np.repeat(range(layers), per_layer),
            "unit": np.tile(range(per_layer), layers),
            "magnitude": rng.exponential(size=layers * per_layer),
        }
    )


def test_a_unit_table_worked_by_hand(tiny_model):
    (site, *_) = find_sites(tiny_model("llama"))
    n = site.n_units
    sums = {
        "abs_sum": torch.full((n,), 6.0, dtype=torch.float64),
        "square_sum": torch.full((n,), 12.0, dtype=torch.float64),
        "weight_norm": torch.arange(n, dtype=torch.float64),
        "taylor_sum": torch.full((n,), -1.5, dtype=torch.float64),
    }
    table = unit_table([site], {site.key: sums}, n_tokens=3)
    row = table.iloc[5]
    assert (row["layer"], row["unit"]) == (0, 5)
    assert row["magnitude"] == 2.0
    assert row["weight"] == 5.0
    assert row["output"] == 10.0  # sqrt(12 / 3) * 5
    assert row["taylor"] == 0.5


def test_output_is_the_leave_one_out_change_of_the_layer(tiny_model):
    site = find_sites(tiny_model("llama"))[1]
    h = torch.randn(7, site.n_units, generator=torch.Generator().manual_seed(1))
    weight = site.down_weight()
    sums = {
        "abs_sum": h.abs().double().sum(0),
        "square_sum": h.double().square().sum(0),
        "weight_norm": weight.double().norm(dim=1),
    }
    table = unit_table([site], {site.key: sums}, n_tokens=7)
    without = h.clone()
    without[:, 11] = 0
    change = (h - without) @ weight
    expected = change.norm(dim=1).square().mean().sqrt()
    assert table.loc[11, "output"] == pytest.approx(float(expected), rel=1e-5)


def test_a_sample_holds_one_unit_of_every_stratum():
    units = units_of(layers=6, per_layer=64)
    sample = sample_units(units, 48, seed=1)
    assert sorted(sample["layer"].unique()) == [0, 2, 5]
    for layer, own in sample.groupby("layer"):
        sizes = units.loc[units["layer"] == layer, "magnitude"].rank().loc[own.index]
        assert sorted(((sizes - 1) // 4).astype(int)) == list(range(16))


def test_a_sample_is_told_by_its_seed():
    units = units_of(layers=4, per_layer=64)
    first, again, other = (sample_units(units, 32, seed).index.tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("family", ["llama", "opt", "zamba2"])
def test_ablations_equal_zeroed_weights(tiny_model, family):
    model = tiny_model(family)
    sites = find_sites(model)
    blocks = torch.randint(4, 260, (2, 12), generator=torch.Generator().manual_seed(2))
    picked = [(site, unit) for site in sites for unit in (0, 7, 31)]
    sample = pd.DataFrame(
        [(site.layer, unit) for site, unit in picked], columns=["layer", "unit"], index=None
    )
    # Room for two rows: the sample does not divide evenly into batches.
    measured = measure_ablations(Runner(model, sites, batch_tokens=24), sample, blocks, "test")

    def zeroed(site, unit):
        calls = []

        def hook(_, args):
            calls.append(None)
            if len(calls) - 1 != site.call:
                return None
            h = args[0].clone()
            h[..., unit] = 0
            return (h, *args[1:])

        handle = site.down.register_forward_pre_hook(hook)
        try:
            return nll(model, block[None])
        finally:
            handle.remove()

    for at, (site, unit) in enumerate(picked):
        changes = []
        for block in blocks:
            changes.append(zeroed(site, unit) - nll(model, block[None]))
        assert measured[at] == pytest.approx(np.mean(changes), abs=2e-6)
    assert measured.abs().max() > 1e-4


def test_ablations_leave_no_hook_behind(tiny_model):
    model = tiny_model("llama")
    sites = find_sites(model)
    blocks = torch.randint(4, 260, (1, 12))
    before = nll(model, blocks)
    sample = pd.DataFrame({"layer": [0], "unit": [3]})
    measure_ablations(Runner(model, sites), sample, blocks, "test")
    assert nll(model, blocks) == before


def test_correlations_are_those_of_scipy():
    from scipy.stats import kendalltau, pearsonr, spearmanr

    units = units_of(layers=3, per_layer=40)
    rng = np.random.default_rng(3)
    units["weight"] = rng.normal(size=len(units))
    units["output"] = units["magnitude"] * units["weight"].abs()
    ablated = units.iloc[::5].assign(loss=lambda table: table["output"] + 0.1)
    table = correlation_table(
        units, ablated, Statistics(resamples=199), 1, {"study": "s", "model": "m", "corpus": "c"}
    )
    assert list(table.columns[:6]) == ["study", "model", "corpus", "site", "size", "impact"]
    assert set(table["impact"]) == {"weight", "output", "loss"}
    for impact, source in (("weight", units), ("output", units), ("loss", ablated)):
        row = table.query("impact == @impact and layer == 0").iloc[0]
        own = source[source["layer"] == 0]
        size, value = own["magnitude"], own[impact]
        assert row["pearson"] == pytest.approx(pearsonr(size, value)[0])
        assert row["spearman"] == pytest.approx(spearmanr(size, value)[0])
        assert row["kendall"] == pytest.approx(kendalltau(size, value)[0])
        assert row["n_units"] == len(own)
        assert row["ci_low"] <= row["spearman"] <= row["ci_high"]
    assert not math.isnan(table.query("layer == -1")["spearman"].iloc[0])

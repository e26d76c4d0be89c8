from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from keepset.measure.ablations import measure_ablations, sample_units
from keepset.measure.runner import Runner
from keepset.sites.ffn import find_ffn_sites


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


def test_a_sample_holds_one_unit_of_every_stratum():
    units = units_of(layers=6, per_layer=64)
    sample = sample_units(units, 48, seed=1)
    assert sorted(sample["layer"].unique()) == [0, 2, 5]
    for layer, units_of_layer in sample.groupby("layer"):
        sizes = units.loc[units["layer"] == layer, "magnitude"].rank().loc[units_of_layer.index]
        assert sorted(((sizes - 1) // 4).astype(int)) == list(range(16))


def test_a_sample_is_told_by_its_seed():
    units = units_of(layers=4, per_layer=64)
    first, again, other = (sample_units(units, 32, seed).index.tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("family", ["llama", "opt", "zamba2"])
def test_ablations_equal_zeroed_weights(tiny_model, family):
    model = tiny_model(family)
    sites = find_ffn_sites(model)
    blocks = torch.randint(4, 260, (2, 12), generator=torch.Generator().manual_seed(2))
    picked = [(site, unit) for site in sites for unit in (0, 7, 31)]
    sample = pd.DataFrame(
        [(site.layer, unit) for site, unit in picked], columns=["layer", "unit"], index=None
    )
    # Room for two rows: the sample does not divide evenly into batches.
    measured = measure_ablations(
        Runner(model, sites, batch_tokens=24), sites, sample, blocks, "test"
    )

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
    sites = find_ffn_sites(model)
    blocks = torch.randint(4, 260, (1, 12))
    before = nll(model, blocks)
    sample = pd.DataFrame({"layer": [0], "unit": [3]})
    measure_ablations(Runner(model, sites), sites, sample, blocks, "test")
    assert nll(model, blocks) == before

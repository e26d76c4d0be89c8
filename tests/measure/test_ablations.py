from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from keepset.calibrate.activations import collect_moments
from keepset.calibrate.units import unit_table
from keepset.hold.inputs import watching
from keepset.measure.ablations import ablation_table, measure_ablations, sample_units
from keepset.measure.runner import Runner
from keepset.settings import Ablation
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


def test_a_bos_is_left_whole_and_never_predicted(tiny_model):
    model = tiny_model("llama")
    site = find_ffn_sites(model)[1]
    block = torch.randint(4, 260, (1, 12), generator=torch.Generator().manual_seed(2))
    ids = torch.cat([torch.tensor([[1]]), block], dim=1)

    def loss(action):
        with watching(model, [site], action), torch.inference_mode():
            logits = model(input_ids=ids).logits[0, :-1].double()
        return float(torch.nn.functional.cross_entropy(logits, block[0]))

    def leave_out(_site, h):
        h = h.clone()
        h[:, 1:, 5] = 0
        return h

    # Two rows of twelve tokens would fit, two of thirteen do not.
    runner = Runner(model, [site], batch_tokens=25, bos=1)
    sample = pd.DataFrame({"layer": [1, 1], "unit": [5, 5]})
    measured = measure_ablations(runner, [site], sample, block, "test")
    change = loss(leave_out) - loss(lambda *_: None)
    assert measured.tolist() == pytest.approx([change] * 2, abs=2e-6)
    assert abs(change) > 1e-5


class TestTable:
    """Units are scored on the text of their ablation, and on all other text."""

    block = torch.randint(4, 260, (6, 12), generator=torch.Generator().manual_seed(2))
    document = torch.tensor([0, 1, 1, 0, 2, 3])

    def make(self, model, tokens, document=None):
        sites = find_ffn_sites(model)
        document = self.document if document is None else document
        moments = collect_moments(
            model, sites, self.block, documents=document, gradients=True, batch_tokens=48
        )
        blocks = SimpleNamespace(calibration=self.block, calibration_document=document)
        ablation = Ablation(units=16, tokens=tokens)
        runner = Runner(model, sites)
        identity = {"model": "m", "corpus": "c"}
        return sites, ablation_table(runner, sites, moments, blocks, ablation, 3, identity)

    def test_scores_are_those_of_whole_documents(self, tiny_model):
        model = tiny_model("llama")
        sites, table = self.make(model, tokens=25)
        # Documents 2 and 3, a block each, and 0, which has two.
        assert set(table["n_documents"]) == {3}
        assert set(table["n_tokens"]) == {48}
        assert len(table) == 16
        assert table.columns[:2].tolist() == ["model", "corpus"]
        for rows, ending in (([0, 3, 4, 5], ""), ([1, 2], "_other")):
            moments = collect_moments(model, sites, self.block[rows], gradients=True)
            alone = unit_table(sites, moments).loc[table.index]
            for name in ("magnitude", "output", "taylor"):
                assert table[name + ending].to_numpy() == pytest.approx(
                    alone[name].to_numpy(), rel=1e-4, abs=1e-9
                )
        sample = table[["layer", "unit"]]
        loss = measure_ablations(
            Runner(model, sites), sites, sample, self.block[[0, 3, 4, 5]], "test"
        )
        assert table["loss"].tolist() == pytest.approx(loss.tolist(), abs=2e-6)

    def test_taylor_is_the_first_order_of_the_change_on_its_own_text(self, tiny_model):
        """On other text it says less: that is what was set against the change."""
        _, table = self.make(tiny_model("llama"), tokens=12)
        change = table["loss"].abs()
        matched, other = (change.corr(table[name]) for name in ("taylor", "taylor_other"))
        assert matched > 0.8, other
        assert other < matched - 0.3

    @pytest.mark.parametrize(
        ("tokens", "document"), [(72, None), (12, torch.zeros(6, dtype=torch.int64))]
    )
    def test_without_other_text_there_are_no_scores_on_it(self, tiny_model, tokens, document):
        _, table = self.make(tiny_model("llama"), tokens, document)
        assert set(table["n_tokens"]) == {72}
        others = [name for name in table if name.endswith("_other")]
        assert len(others) == 3
        assert table[others].isna().all(axis=None)
        assert table["taylor"].notna().all()


def test_ablations_leave_no_hook_behind(tiny_model):
    model = tiny_model("llama")
    sites = find_ffn_sites(model)
    blocks = torch.randint(4, 260, (1, 12))
    before = nll(model, blocks)
    sample = pd.DataFrame({"layer": [0], "unit": [3]})
    measure_ablations(Runner(model, sites), sites, sample, blocks, "test")
    assert nll(model, blocks) == before

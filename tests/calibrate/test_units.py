from __future__ import annotations

import pandas as pd
import pytest
import torch

from keepset.calibrate.channels import Scorer
from keepset.calibrate.units import channel_table, unit_table
from keepset.sites.ffn import find_ffn_sites
from keepset.sites.state import find_state_sites
from state_models import shape


def test_a_unit_table_worked_by_hand(tiny_model):
    (site, *_) = find_ffn_sites(tiny_model("llama"))
    n = site.n_units

    def of_groups(*values):
        return torch.tensor(values, dtype=torch.float64)[:, None].expand(-1, n)

    sums = {
        "tokens": torch.tensor([3.0, 1.0], dtype=torch.float64),
        "abs_by_group": of_groups(6.0, 10.0),
        "square_by_group": of_groups(12.0, 4.0),
        "weight_norm": torch.arange(n, dtype=torch.float64),
        "taylor_by_group": of_groups(-1.5, 3.5),
    }
    row = unit_table([site], {site.key: sums}, [0]).iloc[5]
    assert (row["layer"], row["unit"]) == (0, 5)
    assert row["magnitude"] == 2.0
    assert row["weight"] == 5.0
    assert row["output"] == 10.0  # sqrt(12 / 3) * 5
    assert row["taylor"] == 0.5
    row = unit_table([site], {site.key: sums}).iloc[5]
    assert row["magnitude"] == 4.0
    assert row["output"] == 10.0  # sqrt(16 / 4) * 5
    assert row["taylor"] == 0.5  # |-1.5 + 3.5| / 4: signs are kept until all is summed


def test_output_is_the_leave_one_out_change_of_the_layer(tiny_model):
    site = find_ffn_sites(tiny_model("llama"))[1]
    h = torch.randn(7, site.n_units, generator=torch.Generator().manual_seed(1))
    weight = site.down_weight()
    sums = {
        "tokens": torch.tensor([7.0], dtype=torch.float64),
        "abs_by_group": h.abs().double().sum(0, keepdim=True),
        "square_by_group": h.double().square().sum(0, keepdim=True),
        "weight_norm": weight.double().norm(dim=1),
    }
    table = unit_table([site], {site.key: sums})
    without = h.clone()
    without[:, 11] = 0
    change = (h - without) @ weight
    expected = change.norm(dim=1).square().mean().sqrt()
    assert table.loc[11, "output"] == pytest.approx(float(expected), rel=1e-5)


def test_one_row_per_channel(tiny_model):
    model = tiny_model("mamba2", **shape("mamba2", 2))
    blocks = torch.randint(4, 260, (2, 24), generator=torch.Generator().manual_seed(1))
    scorer = Scorer(model, find_state_sites(model), blocks, 100)
    sums = scorer.one_shot()
    table = channel_table(scorer.sites, sums, {"model": "m"})
    assert len(table) == 2 * 2 * 8
    row = table.query("layer == 1 and group == 1 and channel == 5").iloc[0]
    assert row["energy"] == float(sums["state.001"].energy[1, 5].sqrt())
    assert row["controllability"] == float(sums["state.001"].controllability[1, 5].sqrt())


def test_a_channel_has_a_row_for_each_group_that_is_left_out(tiny_model):
    model = tiny_model("mamba2")
    sites = find_state_sites(model)
    blocks = torch.randint(4, 260, (3, 24), generator=torch.Generator().manual_seed(1))
    documents = torch.tensor([4, 7, 4])
    sums = Scorer(model, sites, blocks, 100, documents=documents).one_shot(gradients=True)
    table = channel_table(sites, sums, {"model": "m"})
    assert sorted(table["left_out"].unique()) == [-1, 0, 1]
    rest = Scorer(model, sites, blocks[1:2], 100).one_shot(gradients=True)
    alone = channel_table(sites, rest, {"model": "m"})
    without = table[table["left_out"] == 0].reset_index(drop=True)
    scores = ["magnitude", "energy", "controllability", "observability", "taylor"]
    pd.testing.assert_frame_equal(without[scores], alone[scores], rtol=1e-5)

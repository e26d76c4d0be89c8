"""Keep sets and channels, as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from keepset.calibrate.channels import Scorer, keep_sets
from keepset.calibrate.sets import channel_table, load_sets, memory_table, save_sets
from keepset.errors import CacheError
from keepset.sites import find_state_sites
from state_models import shape

Factory = Callable[..., PreTrainedModel]
BLOCKS = torch.randint(4, 260, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def scorer(tiny_model: Factory) -> Scorer:
    model = tiny_model("mamba2", **shape("mamba2", 2))
    return Scorer(model, find_state_sites(model), BLOCKS, 100)


def test_sets_come_back_as_they_were(scorer: Scorer, tmp_path: Path) -> None:
    sets, _ = keep_sets(scorer, ["ghost", "random"], [0.5, 0.95], [7, 8])
    save_sets(sets, tmp_path / "sets.safetensors", {"text": "a"})
    found = load_sets(tmp_path / "sets.safetensors", {"text": "a"})
    assert set(found) == set(sets)
    for key, masks in sets.items():
        assert {site: mask.tolist() for site, mask in masks.items()} == {
            site: mask.tolist() for site, mask in found[key].items()
        }


def test_foreign_and_damaged_sets_are_refused(scorer: Scorer, tmp_path: Path) -> None:
    path = tmp_path / "sets.safetensors"
    sets, _ = keep_sets(scorer, ["ghost"], [0.5], [7])
    save_sets(sets, path, {"text": "a"})
    with pytest.raises(CacheError, match="stale keep sets: text is 'a' in the file and 'b' now"):
        load_sets(path, {"text": "b"})
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(CacheError, match="cannot be read"):
        load_sets(path, {"text": "a"})


def test_one_row_per_channel(scorer: Scorer) -> None:
    sums = scorer.one_shot()
    table = channel_table(scorer.sites, sums, {"model": "m"})
    assert len(table) == 2 * 2 * 8
    row = table.query("layer == 1 and group == 1 and channel == 5").iloc[0]
    assert row["energy"] == float(sums["state.001"].energy[1, 5].sqrt())
    assert row["controllability"] == float(sums["state.001"].controllability[1, 5].sqrt())


def test_scoring_takes_little_more_memory_than_a_forward_pass(tiny_model: Factory) -> None:
    # Long enough that a state for every token would dwarf everything else.
    model = tiny_model("mamba2", **shape("mamba2", n_state=64))
    blocks = torch.randint(4, 260, (2, 160))
    scorer = Scorer(model, find_state_sites(model), blocks, 1000)
    table = memory_table(scorer, blocks, {}).pivot(
        index="n_tokens", columns="method", values="peak_bytes"
    )
    one_state_per_token = 160 * 4 * 64 * 64
    assert table.loc[160, "ghost"] < one_state_per_token
    assert (table["ghost"] <= 2 * table["forward"]).all()
    assert (table["taylor"] > table["ghost"]).all()

"""Keep sets and channels, as files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from keepset.calibrate.channels import Scorer
from keepset.calibrate.choice import allocate, keep_sets
from keepset.calibrate.sets import RankedSets, load_sets, save_sets
from keepset.errors import CacheError, ConfigError, ModelError
from keepset.rules.rule import Rule
from keepset.sites.state import find_state_sites
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
    loaded = load_sets(tmp_path / "sets.safetensors", {"text": "a"})
    assert set(loaded) == set(sets)
    for rule, masks in sets.items():
        assert {site: mask.tolist() for site, mask in masks.items()} == {
            site: mask.tolist() for site, mask in loaded[rule].items()
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


def test_ranked_sets_are_the_first_of_one_ranking() -> None:
    size = torch.tensor([3.0, 1.0, 2.0, 1.0], dtype=torch.float64)
    sets = RankedSets({"ffn.000": {"abs_sum": size}})
    masks = sets[Rule("magnitude", 0.25, "corpus")]
    assert masks["ffn.000"].tolist() == [True, True, True, False]  # a tie goes to the lowest index
    assert sets[Rule("magnitude", 0.75, "corpus")]["ffn.000"].tolist() == [True] + [False] * 3
    one, other = (sets[Rule("random", 0.5, "corpus", seed=seed)] for seed in (1, 5))
    assert one["ffn.000"].tolist() != other["ffn.000"].tolist()
    with pytest.raises(ConfigError, match="needs gradients"):
        sets[Rule("taylor", 0.5, "corpus")]


def test_no_set_is_chosen_on_sums_that_are_not_finite() -> None:
    sums = torch.tensor([3.0, float("nan"), 2.0], dtype=torch.float64)
    sets = RankedSets({"ffn.007": {"abs_sum": sums.abs(), "taylor_sum": sums}})
    with pytest.raises(ModelError, match=r"the taylor score of ffn\.007"):
        sets[Rule("taylor", 0.5, "corpus")]
    with pytest.raises(ModelError, match=r"the scores of state\.001"):
        allocate({"state.001": sums[None]}, 0.5, uniform=True)


@pytest.mark.parametrize(
    "rule", [Rule("magnitude", 0.5, 1), Rule("magnitude", 0.5, "corpus", site="state")]
)
def test_rules_that_ranked_sets_do_not_answer_are_no_keys(rule: Rule) -> None:
    with pytest.raises(KeyError):
        RankedSets({"ffn.000": {"abs_sum": torch.ones(4)}})[rule]
    with pytest.raises(KeyError):
        RankedSets({})[Rule("magnitude", 0.5, "corpus")]

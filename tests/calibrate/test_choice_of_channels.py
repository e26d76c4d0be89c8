"""The choice of channels: the shares that layers keep, and the sets of every family."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, strategies as st
from transformers import PreTrainedModel

from keepset.calibrate.channels import Scorer
from keepset.calibrate.choice import allocate, channel_rule, choose_channels, keep_sets
from keepset.errors import ConfigError, ModelError
from keepset.kinds import find_sites
from keepset.rules.rule import Rule, n_kept
from keepset.sites.state import find_state_sites
from state_models import FAMILIES, SELECTIVE, UNCUT

Factory = Callable[..., PreTrainedModel]
BLOCKS = torch.randint(4, 260, (4, 19), generator=torch.Generator().manual_seed(5))


@given(
    st.lists(st.integers(2, 9), min_size=1, max_size=4),
    st.integers(1, 3),
    st.floats(0, 0.99),
    st.booleans(),
    st.integers(0, 99),
)
def test_allocation_keeps_as_many_either_way(
    sizes: list[int], groups: int, sparsity: float, uniform: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = {
        f"state.{layer:03d}": torch.randint(5, (groups, n), generator=generator).double()
        for layer, n in enumerate(sizes)
    }
    masks = allocate(scores, sparsity, uniform=uniform)
    counts = {key: mask.sum(dim=1) for key, mask in masks.items()}
    assert all(int(count.min()) == int(count.max()) >= 1 for count in counts.values())
    kept = {key: int(count[0]) for key, count in counts.items()}
    assert sum(kept.values()) == sum(n_kept(n, sparsity) for n in sizes)
    if uniform:
        assert list(kept.values()) == [n_kept(n, sparsity) for n in sizes]
    for key, mask in masks.items():
        for row, score in zip(mask, scores[key], strict=True):
            expected = sorted(range(len(score)), key=lambda j: (-float(score[j]), j))
            assert sorted(row.nonzero()[:, 0].tolist()) == sorted(expected[: kept[key]])


def test_global_threshold_moves_channels_to_the_layer_that_needs_them() -> None:
    scores = {
        "state.000": torch.tensor([[9.0, 8, 7, 6]]),
        "state.001": torch.tensor([[3.0, 2, 1, 0]]),
    }
    masks = allocate(scores, 0.5, uniform=False)
    assert masks["state.000"].sum() == 3
    assert masks["state.001"].sum() == 1


@pytest.mark.parametrize("family", [*FAMILIES, *SELECTIVE, *UNCUT])
def test_keep_sets_of_every_family(tiny_model: Factory, family: str) -> None:
    model = tiny_model(family)
    scorer = Scorer(model, find_state_sites(model), BLOCKS, 1000)
    names = ["ghost", "ghost-oneshot", "magnitude", "taylor", "random"]
    sets, sums = keep_sets(scorer, names, [0.5], [3, 4])
    expected = [channel_rule(name, 0.5, 3) for name in names] + [channel_rule("random", 0.5, 4)]
    assert list(sets) == expected
    assert all(site.taylor is not None for site in sums.values())
    with pytest.raises(ConfigError, match="unknown score of a state nonsense"):
        keep_sets(scorer, ["nonsense"], [0.5], [0])


@pytest.mark.parametrize(
    "rule",
    [
        Rule("magnitude", 0.5, "corpus"),
        Rule("magnitude", 0.5, 8, site="state", access="both"),
        Rule("magnitude", 0.5, "corpus", site="state", access="read"),
    ],
)
def test_a_rule_that_chooses_no_channels_once_is_refused(tiny_model: Factory, rule: Rule) -> None:
    model = tiny_model("mamba2")
    with pytest.raises(ConfigError, match="window corpus, site state and access both, not for"):
        choose_channels(model, find_state_sites(model), BLOCKS, rule)


def test_sites_that_are_no_states_are_passed_over(tiny_model: Factory) -> None:
    rule, both, neurons = channel_rule("ghost", 0.5, 0), tiny_model("bamba"), tiny_model("llama")
    chosen = choose_channels(both, find_sites(both), BLOCKS, rule)
    assert set(chosen) == {site.key for site in find_state_sites(both)}
    with pytest.raises(ModelError, match="the model has no state channels"):
        choose_channels(neurons, find_sites(neurons), BLOCKS, rule)

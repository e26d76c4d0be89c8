import pytest
import torch

from keepset.errors import ConfigError
from keepset.rules.scores import NEURON_SCORES, corpus_score, site_seed, token_names, token_score

MOMENTS = {
    "abs_sum": torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64),
    "square_sum": torch.tensor([9.0, 1.0, 4.0], dtype=torch.float64),
    "impact_sum": torch.tensor([0.3, 5.0, 2.0], dtype=torch.float64),
    "weight_norm": torch.tensor([0.1, 5.0, 1.0], dtype=torch.float64),
    "taylor_sum": torch.tensor([-7.0, 0.5, 2.0], dtype=torch.float64),
}


@pytest.mark.parametrize(
    ("name", "best"), [("magnitude", 0), ("weight", 1), ("impact", 1), ("taylor", 0)]
)
def test_scores_rank_by_what_they_are_named_after(name, best):
    assert int(corpus_score(name, MOMENTS).argmax()) == best


def test_random_depends_on_its_seed_alone():
    first, again, other = (corpus_score("random", MOMENTS, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_sites_have_seeds_of_their_own():
    seeds = {site_seed(seed, f"ffn.{layer:03d}") for seed in range(5) for layer in range(30)}
    assert len(seeds) == 150
    assert site_seed(0, "ffn.000") == 1374026943  # the same on every machine


def test_unknown_scores_are_refused():
    with pytest.raises(ConfigError, match=r"unknown score 'size'.*magnitude"):
        corpus_score("size", MOMENTS)


def test_taylor_without_gradients_is_refused():
    with pytest.raises(ConfigError, match="gradients"):
        corpus_score("taylor", {"abs_sum": torch.ones(3)})


def test_token_scores():
    h = torch.tensor([[-2.0, 1.0, 0.0]])
    norms = torch.tensor([0.1, 5.0, 1.0])
    assert token_score("magnitude", h, None, None).tolist() == [[2.0, 1.0, 0.0]]
    torch.testing.assert_close(
        token_score("impact", h, norms, None), torch.tensor([[0.2, 5.0, 0.0]])
    )
    draws = [
        token_score("random", h, None, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("name", sorted(set(NEURON_SCORES) - set(token_names(NEURON_SCORES))))
def test_scores_without_a_per_token_form_say_so(name):
    with pytest.raises(ConfigError, match="window: corpus"):
        token_score(name, torch.ones(1, 3), torch.ones(3), None)

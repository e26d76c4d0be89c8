"""A recipe on whole passages: every site obeys its own rule."""

from __future__ import annotations

import pytest
import torch

from keepset.errors import ConfigError, ModelError
from keepset.hold.inputs import hold_windows, watching
from keepset.kinds import find_sites
from keepset.kinds.recipes import hold_recipe
from keepset.measure.runner import Runner
from keepset.models import still_to_do, weights_digest
from keepset.rules.masks import top_mask
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule

IDS = torch.randint(4, 260, (3, 9), generator=torch.Generator().manual_seed(1))
STATE = Rule("ghost", 0.5, "corpus", site="state", access="both")


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS, use_cache=False).logits


def opened(mask):
    """A mask of tokens, of which the first of each row keeps all."""
    mask = mask.clone()
    mask[:, 0] = True
    return mask


def test_one_rule_everywhere_is_that_rule(tiny_model):
    model = tiny_model("llama")
    sites = find_sites(model, ["ffn"])
    rule = Rule("magnitude", 0.6, 1)
    with hold_windows(model, sites, rule):
        expected = logits(model)
    with hold_recipe(model, sites, Recipe({site.key: rule for site in sites})):
        assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("family", ["llama", "opt", "qwen3_moe"])
def test_every_site_has_its_own_share_and_threshold(tiny_model, family):
    model = tiny_model(family)
    sites = find_sites(model, ["ffn", "input"])
    shares = [0.0, 0.25, 0.5, 0.75] * len(sites)
    rules = {
        site.key: Rule("magnitude", share, 1, site=site.kind)
        for site, share in zip(sites, shares, strict=False)
    }
    least = {site.key: 0.05 for site in sites[::3]}
    with hold_recipe(model, sites, Recipe(rules, least)):
        held = logits(model)

    def masked(site, h):
        scores = h.abs().float()
        if site.key in least:
            return h * opened(scores >= least[site.key])
        share = rules[site.key].sparsity
        return h * opened(top_mask(scores, site.n_units - int(share * site.n_units)))

    with watching(model, sites, masked):
        expected = logits(model)
    torch.testing.assert_close(held, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(held, logits(model), atol=1e-4)


def test_static_parts_and_dynamic_parts_stand_together(tiny_model):
    model = tiny_model("zamba2")
    sites = find_sites(model)
    state = next(site for site in sites if site.kind == "state")
    kept = {state.key: [[*range(state.n_state // 2)]] * state.n_groups}
    dynamic = {s.key: Rule("impact", 0.5, 1, site="input") for s in sites if s.kind == "input"}
    runner = Runner(model, sites)
    dense = runner.block_nll(IDS)
    alone = runner.block_nll(IDS, Recipe({state.key: STATE}, kept=kept))
    both = runner.block_nll(IDS, Recipe({state.key: STATE, **dynamic}, kept=kept))
    assert not torch.allclose(both, alone)
    assert not torch.allclose(alone, dense)
    assert torch.equal(runner.block_nll(IDS), dense)


def test_the_gate_alone_can_choose(tiny_model):
    model = tiny_model("llama")
    sites = find_sites(model, ["ffn"])
    with hold_windows(model, sites, Rule("gate", 0.5, 1)):
        held = logits(model)
    gates = {}
    for site in sites:
        site.up[0].module.register_forward_hook(
            lambda _, __, out, key=site.key: gates.update({key: torch.nn.functional.silu(out)})
        )

    def masked(site, h):
        kept = site.n_units - site.n_units // 2
        return h * opened(top_mask(gates[site.key].abs().float(), kept))

    with watching(model, sites, masked):
        torch.testing.assert_close(held, logits(model), rtol=1e-5, atol=1e-6)


def test_a_block_without_a_gate_cannot_choose_by_it(tiny_model):
    model = tiny_model("opt")
    sites = find_sites(model, ["ffn"])
    with (
        pytest.raises(ConfigError, match="score gate needs a gated block"),
        hold_windows(model, sites, Rule("gate", 0.5, 1)),
    ):
        pass


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe({"ffn.099": Rule("magnitude", 0.5, 1)}), r"names ffn\.099"),
        (Recipe({"state.000": STATE}, kept={"state.000": [[0]] * 9}), "units of 9 groups"),
        (Recipe({"state.000": STATE}, kept={"state.000": [[999]]}), "units beyond its"),
        (Recipe({"state.000": STATE}, kept={"state.000": [0]}), "the kept units of each group"),
        (Recipe({"state.000": STATE}, kept={"state.000": [[0, 0]]}), "keeps a unit twice"),
    ],
)
def test_what_the_model_does_not_have_is_refused(tiny_model, recipe, message):
    model = tiny_model("mamba2")
    with (
        pytest.raises(ModelError, match=message),
        hold_recipe(model, find_sites(model), recipe),
    ):
        pass


def test_a_recipe_of_other_weights_is_refused(tiny_model):
    model, other = tiny_model("llama"), tiny_model("opt")
    owner = {"name": "mine", "model_type": "llama", "weights": weights_digest(model)}
    recipe = Recipe({"ffn.000": Rule("magnitude", 0.5, 1)}, model=owner)
    assert still_to_do(model, recipe) is recipe
    with pytest.raises(ModelError, match=r"belongs to mine \(a llama model"):
        still_to_do(other, recipe)
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0] += 1
    with pytest.raises(ModelError, match=r"belongs to mine \(other weights of this kind"):
        still_to_do(model, recipe)


def test_of_a_checkpoint_that_is_cut_the_dynamic_part_is_left(tiny_model):
    model = tiny_model("zamba2")
    recipe = Recipe(
        {"state.000": STATE, "ffn.001": Rule("magnitude", 0.5, 1)},
        kept={"state.000": [[0]]},
        model={"weights": "of the dense checkpoint"},
        cut=weights_digest(model),
    )
    assert [*still_to_do(model, recipe).rules] == ["ffn.001"]

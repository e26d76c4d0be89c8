"""What is saved, in bytes, counted by hand."""

from __future__ import annotations

import pytest

from keepset.kinds import find_sites
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule
from keepset.slim import savings


def test_weights_that_a_token_reads(tiny_model):
    model = tiny_model("llama")
    head = model.lm_head.weight
    table = model.model.embed_tokens.weight
    read = sum(p.nbytes for p in model.parameters()) - (0 if table is head else table.nbytes)
    assert savings.total(model, find_sites(model), "speed") == read


def test_a_site_is_worth_the_weights_of_its_maps(tiny_model):
    model = tiny_model("llama")
    sites = {site.key: site for site in find_sites(model)}
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    qkv = sum(m.weight.nbytes for m in (attention.q_proj, attention.k_proj, attention.v_proj))
    assert savings.site_bytes(sites["input.000.q_proj"]) == qkv
    down = mlp.down_proj.weight.nbytes
    assert savings.site_bytes(sites["ffn.000"]) == down
    assert savings.site_bytes(sites["ffn.000"], "gate") == down + mlp.up_proj.weight.nbytes
    recipe = Recipe(
        {
            "input.000.q_proj": Rule("magnitude", 0.25, 1, site="input"),
            "ffn.000": Rule("magnitude", 0.5, 1),
        },
        {"ffn.000": 0.1},
    )
    by_rule = savings.saved(sites, recipe, {}, "speed")
    assert by_rule == pytest.approx(0.25 * qkv + 0.5 * down, abs=1)
    measured = savings.saved(sites, recipe, {"ffn.000": 0.75}, "speed")
    assert measured == pytest.approx(0.25 * qkv + 0.75 * down, abs=1)
    assert savings.saved(sites, recipe, {}, "memory") == 0


def test_states_and_experts(tiny_model):
    model = tiny_model("mamba2")
    sites = {site.key: site for site in find_sites(model)}
    state = next(site for site in sites.values() if site.kind == "state")
    size = 4 * state.n_heads * state.head_dim * state.n_state
    assert savings.state_bytes(state) == size
    rule = Rule("ghost", 0.5, "corpus", site="state", access="both")
    recipe = Recipe({state.key: rule}, kept={state.key: [[0]] * state.n_groups})
    assert savings.saved(sites, recipe, {}, "memory") == size // 2
    mixture = tiny_model("qwen3_moe")
    sites = {site.key: site for site in find_sites(mixture)}
    experts = next(site for site in sites.values() if site.kind == "expert")
    weights = sum(p.nbytes for p in experts.block.experts.parameters())
    recipe = Recipe(
        {experts.key: Rule("impact", 0.5, "corpus", site="expert")}, kept={experts.key: [0, 1]}
    )
    assert savings.saved(sites, recipe, {}, "size") == weights // 2
    assert savings.saved(sites, recipe, {}, "speed") == 0

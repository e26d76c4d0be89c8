"""Costs of leaving units out against loops in plain torch."""

from __future__ import annotations

import pytest
import torch

from keepset.hold.inputs import watching
from keepset.kinds import find_sites
from keepset.kinds.recipes import hold_recipe
from keepset.rules.masks import top_mask
from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule, n_kept
from keepset.slim import sensitivity
from keepset.slim.savings import site_bytes

BLOCKS = torch.randint(4, 260, (3, 8), generator=torch.Generator().manual_seed(1))
SHARES = [0.0, 0.25, 0.5]


@pytest.mark.parametrize("score", ["magnitude", "impact"])
def test_loss_curves_are_the_second_order_of_the_loss(tiny_model, score):
    model = tiny_model("llama")
    sites = find_sites(model, ["ffn", "input"])
    curves = sensitivity.loss_curves(model, sites, BLOCKS, score, SHARES)
    values = {}

    def keep(site, h):
        h.retain_grad()
        values[site.key] = h
        return h

    embeddings = model.get_input_embeddings()
    with watching(model, sites, keep), torch.enable_grad():
        embeddings.register_forward_hook(lambda _, __, out: out.requires_grad_(True))
        logits = model(input_ids=BLOCKS, use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1), BLOCKS[:, 1:].flatten(), reduction="sum"
        )
        loss.backward()
    for site in sites:
        h, gradient = values[site.key].detach(), values[site.key].grad
        norms = torch.cat(site.columns(), dim=1).norm(dim=1) if score == "impact" else 1.0
        for share, cost in zip(SHARES, curves[site.key], strict=True):
            left = ~top_mask(h.abs() * norms, n_kept(site.n_units, share))
            change = -(gradient * h * left).sum(dim=-1)[:, 1:]
            expected = 0.5 * float(change.double().square().sum()) / BLOCKS.numel()
            assert cost == pytest.approx(expected, rel=1e-3, abs=1e-12)


def test_a_threshold_leaves_out_its_share(tiny_model):
    model = tiny_model("llama")
    sites = find_sites(model, ["ffn", "input"])
    samples = sensitivity.score_samples(model, sites, BLOCKS, "magnitude")
    for site in sites:
        scores = samples[site.key]
        assert len(scores) == 3 * 7 * site.n_units
        assert bool((scores.diff() >= 0).all())
        least = sensitivity.threshold(scores, 0.4)
        assert float((scores < least).float().mean()) == pytest.approx(0.4, abs=0.02)
    assert sensitivity.threshold(scores, 0.0) == 0.0


def test_the_share_that_a_threshold_leaves_out_is_counted_as_it_runs(tiny_model):
    model = tiny_model("llama")
    sites = find_sites(model, ["ffn"])
    rules = {site.key: Rule("magnitude", 0.5, 1) for site in sites}
    least = dict.fromkeys(rules, 0.01)
    recipe = Recipe(rules, least)
    shares = sensitivity.shares_left_out(model, sites, recipe, BLOCKS)
    seen = {}

    def count(site, h):
        seen[site.key] = float((h[:, 1:].abs() < 0.01).float().mean())

    with watching(model, sites, count), hold_recipe(model, sites, recipe), torch.no_grad():
        model(input_ids=BLOCKS, use_cache=False)
    assert shares == pytest.approx(seen, abs=1e-6)
    assert 0 < min(shares.values()) < 1


def test_layers_take_the_step_that_changes_their_output_least(tiny_model):
    model = tiny_model("llama")
    sites = find_sites(model, ["ffn", "input"])
    sizes = {site.key: site_bytes(site) for site in sites}
    shares = sensitivity.layer_greedy(model, sites, BLOCKS, "magnitude", sizes, 0.05)
    layers = model.model.layers
    for index, layer in enumerate(layers):
        group = [site for site in sites if site.layer == index]
        total = sum(sizes[site.key] for site in group)
        inputs, outputs = [], []
        hooks = [
            layer.register_forward_pre_hook(lambda _, args, seen=inputs: seen.append(args[0])),
            layer.register_forward_hook(lambda _, __, out, seen=outputs: seen.append(out)),
        ]
        with torch.no_grad():
            model(input_ids=BLOCKS, use_cache=False)
            errors = {}
            for site in group:
                share = 0.05 * total / sizes[site.key]
                recipe = Recipe({site.key: Rule("magnitude", share, 1, site=site.kind)})
                with hold_recipe(model, sites, recipe):
                    model(input_ids=BLOCKS, use_cache=False)
                assert torch.equal(inputs[-1], inputs[0]) or index  # nothing before it changed
                errors[site.key] = float((outputs[-1] - outputs[0]).square().sum())
        for hook in hooks:
            hook.remove()
        best = min(errors, key=errors.get)
        taken = {key: share for key, share in shares.items() if share and key in errors}
        assert taken == {best: pytest.approx(0.05 * total / sizes[best])}


def test_levels_of_layers_save_their_bytes(tiny_model):
    model = tiny_model("llama")
    sites = find_sites(model, ["ffn", "input"])
    sizes = {site.key: site_bytes(site) for site in sites}
    shares = sensitivity.layer_greedy(model, sites, BLOCKS, "magnitude", sizes, 0.225)
    for layer in (0, 1):
        keys = [site.key for site in sites if site.layer == layer]
        saved = sum(shares[key] * sizes[key] for key in keys)
        assert saved == pytest.approx(0.225 * sum(sizes[key] for key in keys))

"""Static rules on whole passages: masks, and the weights of kept units alone."""

import pytest
import torch
from test_inputs import FAMILIES, capture, hooks, ids, logits, random_masks

from keepset.hold.inputs import watching
from keepset.hold.slices import sliceable
from keepset.hold.static import Static, hold_static
from keepset.kernels.selection import Selection
from keepset.sites.ffn import find_ffn_sites

MASKED_ONLY = Selection("torch", forced=["masked"])


@pytest.mark.parametrize("family", FAMILIES)
def test_static_masks_hold_from_the_second_token(tiny_model, family):
    model = tiny_model(family)
    sites = find_ffn_sites(model)
    masks = random_masks(sites, 0.6)
    dense = capture(model, sites[:1], ids())[sites[0].key]
    seen = capture(model, sites, ids(), Static(masks))
    for site in sites:
        assert not seen[site.key][:, 1:, ~masks[site.key]].any()
    assert torch.equal(seen[sites[0].key][:, 0], dense[:, 0])
    assert torch.equal(seen[sites[0].key][:, 1:], dense[:, 1:] * masks[sites[0].key])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_token_is_run_dense_under_a_static_set(tiny_model, family):
    model = tiny_model(family)
    sites = find_ffn_sites(model)
    with hold_static(model, sites, random_masks(sites, 0.9), MASKED_ONLY):
        first, rest = logits(model, ids(3, 1)), logits(model, ids(3, 2))
    torch.testing.assert_close(first, logits(model, ids(3, 1)), rtol=0, atol=0)
    assert not torch.allclose(rest[:, 1], logits(model, ids(3, 2))[:, 1], atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.6, 0.97])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (3, 9)], ids=str)
def test_cut_weights_give_what_masks_give(tiny_model, family, sparsity, shape):
    model = tiny_model(family)
    sites = find_ffn_sites(model)
    masks, tokens = random_masks(sites, sparsity), ids(*shape)
    dense = logits(model, tokens)
    with watching(model, sites, Static(masks)):
        masked = logits(model, tokens)
    with hold_static(model, sites, masks):
        torch.testing.assert_close(logits(model, tokens), masked, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(model, tokens), dense)
    assert hooks(model) == 0


def widths(model, sites, tokens):
    """How many columns reach every down projection."""
    seen = {}
    handles = [
        site.down.register_forward_pre_hook(
            lambda _, args, key=site.key: seen.update({key: args[0].shape[-1]})
        )
        for site in sites
    ]
    logits(model, tokens)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_units_are_cut_out_where_they_can_be(tiny_model, family):
    model = tiny_model(family)
    sites = find_ffn_sites(model)
    masks = random_masks(sites, 0.75)
    kept = {site.key: int(masks[site.key].sum()) for site in sites}
    all_of = {site.key: site.n_units for site in sites}
    with hold_static(model, sites, masks):
        assert widths(model, sites, ids()) == {
            site.key: (kept if sliceable(site) else all_of)[site.key] for site in sites
        }
    with hold_static(model, sites, masks, MASKED_ONLY):
        assert widths(model, sites, ids()) == all_of


def test_a_site_that_keeps_all_or_nothing_is_masked(tiny_model):
    model = tiny_model("llama")
    sites = find_ffn_sites(model)
    masks = random_masks(sites, 0.5)
    masks[sites[0].key] = torch.ones_like(masks[sites[0].key])
    masks[sites[1].key] = torch.zeros_like(masks[sites[1].key])
    with watching(model, sites, Static(masks)):
        masked = logits(model, ids())
    with hold_static(model, sites, masks):
        torch.testing.assert_close(logits(model, ids()), masked, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_dense_weights_are_back_after_an_exception(tiny_model, family):
    model = tiny_model(family)
    sites = find_ffn_sites(model)
    dense = logits(model, ids())
    with (
        pytest.raises(RuntimeError, match="stop"),
        hold_static(model, sites, random_masks(sites, 0.5)),
    ):
        raise RuntimeError("stop")
    assert torch.equal(logits(model, ids()), dense)
    assert hooks(model) == 0
    assert not any("forward" in vars(module) for module in model.modules())


def test_low_precision_is_as_near_to_float32_as_masks_are(tiny_model):
    model = tiny_model("llama")
    sites = find_ffn_sites(model)
    masks = random_masks(sites, 0.6)
    with hold_static(model, sites, masks, MASKED_ONLY):
        exact = logits(model, ids())
    model.to(torch.bfloat16)
    with hold_static(model, sites, masks, MASKED_ONLY):
        masked = (logits(model, ids()) - exact).norm()
    with hold_static(model, sites, masks):
        cut = (logits(model, ids()) - exact).norm()
    assert 0 < cut < 1.5 * masked

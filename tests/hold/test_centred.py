"""Rules by the score `centred`, against the model with other weights and inputs in plain torch."""

from contextlib import ExitStack

import pytest
import torch
from torch.nn import functional

from keepset import Runner
from keepset.errors import ConfigError
from keepset.hold.inputs import watching
from keepset.hold.slices import standing_forward
from keepset.kinds import find_sites
from keepset.rules.rule import Rule

BLOCKS = torch.randint(4, 260, (3, 12), generator=torch.Generator().manual_seed(5))
LEAD_IN = torch.randint(4, 260, (3, 12), generator=torch.Generator().manual_seed(6))


def sites_and_centres(model):
    sites = find_sites(model, ["ffn"])
    return sites, {site.key: 0.03 * (place + 1) for place, site in enumerate(sites)}


def by_hand(site, centre, sparsity):
    """W (h - c), of the largest |h - c| alone, + b + W c, at every token but the first.

    The lowest of equal units are kept: behind ReLU many are as far from c.
    """
    module = site.down
    weight, bias = module.weight, module.bias

    def forward(h):
        offsets = h - centre
        kept = torch.zeros_like(h)
        n_kept = h.shape[-1] - round(sparsity * h.shape[-1])
        best = offsets.abs().sort(dim=-1, descending=True, stable=True).indices[..., :n_kept]
        kept.scatter_(-1, best, 1.0)
        known = weight @ torch.full_like(weight[0], centre)
        sparse = functional.linear(offsets * kept, weight, bias) + known
        dense = functional.linear(h, weight, bias)
        first = torch.arange(len(sparse.flatten(0, -2))) % BLOCKS.shape[1] == 0
        return torch.where(first.view(*h.shape[:-1], 1), dense, sparse)

    return forward


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("kernels", ["torch", "numba"])
def test_a_dynamic_rule_is_a_shifted_product_and_a_bias(tiny_model, family, kernels):
    model = tiny_model(family)
    sites, centres = sites_and_centres(model)
    rule = Rule("centred", 0.5, 1)
    runner = Runner(model, sites, kernels=kernels, centres=centres)
    measured = torch.as_tensor(runner.block_nll(BLOCKS, rule))
    with ExitStack() as stack:
        for site in sites:
            forward = by_hand(site, centres[site.key], rule.sparsity)
            stack.enter_context(standing_forward(site.down, forward))
        expected = torch.as_tensor(runner.block_nll(BLOCKS))
    torch.testing.assert_close(measured, expected, rtol=1e-5, atol=1e-5)
    zeroed = Runner(model, sites, centres=dict.fromkeys(centres, 0.0))
    assert not torch.allclose(torch.as_tensor(zeroed.block_nll(BLOCKS, rule)), expected)


def test_zero_as_the_centre_is_the_score_magnitude(tiny_model):
    model = tiny_model("llama")
    sites = find_sites(model, ["ffn", "input"])
    zero = Runner(model, sites, kernels="torch", centres=dict.fromkeys((s.key for s in sites), 0.0))
    for site in ("ffn", "input"):
        for window, choice in ((1, "oracle"), (4, "oracle"), (4, "causal")):
            nll = [
                torch.as_tensor(
                    zero.block_nll(BLOCKS, Rule(score, 0.6, window, choice, site=site), LEAD_IN)
                )
                for score in ("centred", "magnitude")
            ]
            assert torch.equal(*nll)


def test_the_first_window_is_chosen_off_the_centre_of_the_text_before(tiny_model):
    model = tiny_model("llama")
    sites, centres = sites_and_centres(model)
    seen = {}
    with watching(model, sites, lambda site, h: seen.update({site.key: h[:, -4:]})):
        model(input_ids=LEAD_IN, use_cache=False)
    runner = Runner(model, sites, kernels="torch", centres=centres)
    # One pass over the text scores it for rules of other scores too.
    plain, centred = (Rule(score, 0.6, 4, "causal") for score in ("magnitude", "centred"))
    runner.lead_in_scores(plain, LEAD_IN, [plain, centred])
    for rule, factor in ((plain, 0.0), (centred, 1.0)):
        for key, scores in runner.lead_in_scores(rule, LEAD_IN).items():
            expected = (seen[key] - factor * centres[key]).abs().mean(dim=1)
            torch.testing.assert_close(scores, expected)


@pytest.mark.parametrize("missing", [0, 1])
def test_a_site_without_a_centre_is_named(tiny_model, missing):
    model = tiny_model("llama")
    sites, centres = sites_and_centres(model)
    given = {} if missing == 0 else dict(list(centres.items())[:missing])
    runner = Runner(model, sites, centres=given)
    with pytest.raises(ConfigError, match=rf"centred 0\.5: .* none of ffn\.00{missing}"):
        runner.block_nll(BLOCKS, Rule("centred", 0.5, 1))

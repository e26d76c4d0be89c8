import pytest
import torch

from keepset.errors import ConfigError, ModelError
from keepset.hold.inputs import Static, Windows, sliceable, sliced, watching
from keepset.rules.masks import top_mask
from keepset.rules.rule import Rule, n_kept
from keepset.sites.ffn import find_ffn_sites

FAMILIES = ("llama", "opt", "gpt2", "phi3", "gpt_neox", "bloom", "falcon", "zamba2")


def hooks(model):
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def ids(rows=2, tokens=9):
    return torch.randint(4, 260, (rows, tokens), generator=torch.Generator().manual_seed(1))


def random_masks(sites, sparsity, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = {site.key: torch.rand(1, site.n_units, generator=generator) for site in sites}
    return {
        site.key: top_mask(scores[site.key], n_kept(site.n_units, sparsity))[0] for site in sites
    }


def logits(model, tokens):
    with torch.inference_mode():
        return model(input_ids=tokens, use_cache=False).logits


def capture(model, sites, tokens, action=None):
    """What reaches every down projection under `action`: site key -> (batch, tokens, units)."""
    seen = {}

    def record(site, h):
        masked = h if action is None else action(site, h)
        seen[site.key] = h if masked is None else masked
        return masked

    with watching(model, sites, record):
        logits(model, tokens)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_watching_sees_batch_and_tokens_in_every_family(tiny_model, family):
    model = tiny_model(family)
    sites = find_ffn_sites(model)
    seen = capture(model, sites, ids(3, 7))
    assert set(seen) == {site.key for site in sites}
    for site in sites:
        assert seen[site.key].shape == (3, 7, site.n_units)
    assert hooks(model) == 0


def test_hooks_go_away_after_an_exception(tiny_model):
    model = tiny_model("llama")

    def fail(site, h):
        raise RuntimeError("stop here")

    with (
        pytest.raises(RuntimeError, match="stop here"),
        watching(model, find_ffn_sites(model), fail),
    ):
        logits(model, ids())
    assert hooks(model) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_static_masks_equal_zeroed_rows_of_the_weights(tiny_model, family):
    model = tiny_model(family)
    sites = find_ffn_sites(model)
    masks = random_masks(sites, 0.6)
    if family == "zamba2":  # one weight serves several sites
        masks = {site.key: masks[sites[0].key] for site in sites}
    with watching(model, sites, Static(masks)):
        masked = logits(model, ids())
    for site in sites:
        site.down_weight()[~masks[site.key]] = 0
    torch.testing.assert_close(masked, logits(model, ids()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "phi3", "gpt_neox"])
def test_sliced_weights_equal_masks_and_are_put_back(tiny_model, family):
    model = tiny_model(family)
    sites = find_ffn_sites(model)
    assert all(sliceable(site) for site in sites)
    dense = logits(model, ids())
    masks = random_masks(sites, 0.6)
    with watching(model, sites, Static(masks)):
        masked = logits(model, ids())
    assert not torch.allclose(masked, dense, atol=1e-3)
    with sliced(sites, masks):
        torch.testing.assert_close(logits(model, ids()), masked, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(model, ids()), dense)
    with pytest.raises(RuntimeError, match="stop"), sliced(sites, masks):
        raise RuntimeError("stop")
    assert torch.equal(logits(model, ids()), dense)


def test_sites_whose_projections_are_unknown_are_not_sliced(tiny_model):
    sites = find_ffn_sites(tiny_model("zamba2"))
    assert not any(sliceable(site) for site in sites)
    with (
        pytest.raises(ModelError, match="cannot be sliced"),
        sliced(sites, random_masks(sites, 0.5)),
    ):
        pass


@pytest.mark.parametrize("window", [1, 2, 4, "sequence"])
def test_sparsity_zero_is_dense_bit_for_bit(tiny_model, window):
    model = tiny_model("opt")
    sites = find_ffn_sites(model)
    dense = logits(model, ids())
    with watching(model, sites, Windows(Rule("magnitude", 0.0, window))):
        assert torch.equal(logits(model, ids()), dense)
    with sliced(sites, random_masks(sites, 0.0)):
        assert torch.equal(logits(model, ids()), dense)


def test_kept_counts_are_exact_at_every_token(tiny_model):
    model = tiny_model("llama")
    sites = find_ffn_sites(model)
    for window in (1, 3, "sequence"):
        seen = capture(model, sites, ids(), Windows(Rule("magnitude", 0.7, window)))
        for site in sites:
            kept = (seen[site.key] != 0).sum(dim=-1)
            assert torch.equal(kept, torch.full_like(kept, n_kept(site.n_units, 0.7)))


def test_oracle_windows_hold_the_set_of_their_own_tokens(tiny_model):
    model = tiny_model("llama")
    first = find_ffn_sites(model)[
        :1
    ]  # behind the first site, activations differ from the dense ones
    dense = capture(model, first, ids())[first[0].key]
    held = capture(model, first, ids(), Windows(Rule("magnitude", 0.5, 4)))[first[0].key]
    kept = n_kept(first[0].n_units, 0.5)
    for row in range(2):
        for start in (0, 4, 8):
            window = dense[row, start : start + 4]
            mask = top_mask(window.abs().mean(dim=0)[None], kept)[0]
            assert torch.equal(held[row, start : start + 4], window * mask)


def test_sequence_equals_a_per_passage_static_set(tiny_model):
    model = tiny_model("opt")
    sites = find_ffn_sites(model)
    passage = ids(1)
    sets = {}
    action = Windows(Rule("magnitude", 0.5, "sequence"))

    def remember(site, h):
        sets[site.key] = top_mask(h.abs().mean(dim=1), n_kept(site.n_units, 0.5))[0]
        return action(site, h)

    with watching(model, sites, remember):
        windowed = logits(model, passage)
    with watching(model, sites, Static(sets)):
        torch.testing.assert_close(logits(model, passage), windowed, rtol=1e-6, atol=1e-6)


def test_a_window_of_one_equals_sequence_on_single_tokens(tiny_model):
    model = tiny_model("llama")
    sites = find_ffn_sites(model)
    results = []
    for window in (1, "sequence"):
        with watching(model, sites, Windows(Rule("magnitude", 0.5, window))):
            results.append(logits(model, ids(5, 1)))
    assert torch.equal(*results)


@pytest.mark.parametrize("window", [1, 3, 4, "sequence"])
def test_causal_windows_hold_the_set_of_the_window_before(tiny_model, window):
    model = tiny_model("llama")
    site = find_ffn_sites(model)[0]
    dense = capture(model, [site], ids(3))[site.key]
    lead_in = torch.rand(site.n_units, generator=torch.Generator().manual_seed(3))
    rule = Rule("magnitude", 0.5, window, "causal")
    held = capture(model, [site], ids(3), Windows(rule, lead_in={site.key: lead_in}))[site.key]
    width = 9 if window == "sequence" else window
    pieces = [piece for row in dense for piece in row.split(width)]
    before = [lead_in, *(piece.abs().mean(dim=0) for piece in pieces[:-1])]
    kept = n_kept(site.n_units, 0.5)
    masked = [piece * top_mask(b[None], kept)[0] for piece, b in zip(pieces, before, strict=True)]
    expected = torch.cat(masked).view_as(dense)
    expected[:, 0] = dense[:, 0]  # a row's first token opens its context
    assert torch.equal(held, expected)


def test_causal_streams_go_on_across_batches(tiny_model):
    model = tiny_model("llama")
    sites = find_ffn_sites(model)[:1]
    lead_in = {sites[0].key: torch.rand(sites[0].n_units)}
    rule = Rule("magnitude", 0.5, 4, "causal")
    tokens = ids(4)
    whole = capture(model, sites, tokens, Windows(rule, lead_in=lead_in))[sites[0].key]
    action = Windows(rule, lead_in=lead_in)
    parts = [capture(model, sites, part, action)[sites[0].key] for part in tokens.split(1)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_causal_passages_begin_dense(tiny_model):
    model = tiny_model("llama")
    site = find_ffn_sites(model)[0]
    dense = capture(model, [site], ids())[site.key]
    action = Windows(Rule("magnitude", 0.5, 4, "causal"), stream=False)
    held = capture(model, [site], ids(), action)[site.key]
    assert torch.equal(held[:, :4], dense[:, :4])
    assert (held[:, 4:] == 0).any(dim=-1).all()


def test_a_causal_stream_without_lead_in_is_refused(tiny_model):
    model = tiny_model("llama")
    action = Windows(Rule("magnitude", 0.5, 4, "causal"))
    with (
        pytest.raises(ConfigError, match="lead-in"),
        watching(model, find_ffn_sites(model), action),
    ):
        logits(model, ids())


def test_padding_changes_no_set(tiny_model):
    model = tiny_model("llama")
    sites = find_ffn_sites(model)
    action = Windows(Rule("magnitude", 0.5, "sequence"), stream=False)
    short = ids(1, 5)
    with watching(model, sites, action):
        alone = logits(model, short)
    padded = torch.cat([short, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    action.valid = torch.tensor([[True] * 5 + [False] * 3])
    with watching(model, sites, action):
        torch.testing.assert_close(logits(model, padded)[:, :5], alone, rtol=1e-5, atol=1e-5)


def test_impact_weighs_by_the_output_column(tiny_model):
    model = tiny_model("llama")
    site = find_ffn_sites(model)[0]
    dense = capture(model, [site], ids())[site.key]
    held = capture(model, [site], ids(), Windows(Rule("impact", 0.5, 1)))[site.key]
    mask = top_mask(dense.abs() * site.down_weight().norm(dim=1), n_kept(site.n_units, 0.5))
    assert torch.equal(held, dense * mask)


def test_a_static_rule_is_no_window():
    with pytest.raises(ConfigError, match="static"):
        Windows(Rule("magnitude", 0.5, "corpus"))

import pytest
import torch

from keepset.errors import ConfigError, ModelError
from keepset.hold.inputs import Windows, watching
from keepset.hold.slices import cut_weights, in_place, sliceable
from keepset.hold.static import Static
from keepset.kernels.selection import Selection
from keepset.rules.masks import top_mask
from keepset.rules.rule import Rule, n_kept
from keepset.sites.ffn import find_ffn_sites
from naive_rules import row_masks

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


def everywhere(masks):
    """Masks of all tokens, the first included."""
    return lambda site, h: h * masks[site.key]


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "phi3", "gpt_neox"])
def test_cut_weights_equal_masks_and_are_put_back(tiny_model, family):
    model = tiny_model(family)
    sites = find_ffn_sites(model)
    assert all(sliceable(site) for site in sites)
    dense = logits(model, ids())
    masks = random_masks(sites, 0.6)
    with watching(model, sites, everywhere(masks)):
        masked = logits(model, ids())
    assert not torch.allclose(masked, dense, atol=1e-3)
    slices = cut_weights(sites, masks)
    with in_place(slices):
        torch.testing.assert_close(logits(model, ids()), masked, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits(model, ids()), dense)
    with pytest.raises(RuntimeError, match="stop"), in_place(slices):
        raise RuntimeError("stop")
    assert torch.equal(logits(model, ids()), dense)


def test_sites_whose_projections_are_unknown_are_not_sliced(tiny_model):
    sites = find_ffn_sites(tiny_model("zamba2"))
    assert not any(sliceable(site) for site in sites)
    with pytest.raises(ModelError, match="cannot be sliced"):
        cut_weights(sites, random_masks(sites, 0.5))


@pytest.mark.parametrize("window", [1, 2, 4, "sequence"])
def test_sparsity_zero_is_dense_bit_for_bit(tiny_model, window):
    model = tiny_model("opt")
    sites = find_ffn_sites(model)
    dense = logits(model, ids())
    with watching(model, sites, Windows(Rule("magnitude", 0.0, window))):
        assert torch.equal(logits(model, ids()), dense)
    assert not cut_weights(sites, random_masks(sites, 0.0))


def test_kept_counts_are_exact_at_every_token(tiny_model):
    model = tiny_model("llama")
    sites = find_ffn_sites(model)
    for window in (1, 3, "sequence"):
        seen = capture(model, sites, ids(), Windows(Rule("magnitude", 0.7, window)))
        for site in sites:
            kept = (seen[site.key] != 0).sum(dim=-1)
            assert torch.equal(kept[:, 1:], torch.full_like(kept[:, 1:], n_kept(site.n_units, 0.7)))
            assert (kept[:, 0] == site.n_units).all()


@pytest.mark.parametrize("bos", [False, True], ids=["text", "bos"])
@pytest.mark.parametrize("lead_in", [False, True], ids=["passages", "blocks"])
@pytest.mark.parametrize("choice", ["oracle", "causal"])
@pytest.mark.parametrize("window", [1, 3, 4, "sequence"])
@pytest.mark.parametrize("kernels", ["torch", "numba"])
def test_windows_hold_what_they_are_defined_to_hold(
    tiny_model, kernels, window, choice, lead_in, bos
):
    model = tiny_model("llama")
    site = find_ffn_sites(model)[0]  # behind it, activations differ from the dense ones
    dense = capture(model, [site], ids(3))[site.key]
    rule = Rule("magnitude", 0.5, window, choice)
    action = Windows(rule, bos=bos, selection=Selection(kernels))
    before = torch.rand(3, site.n_units, generator=torch.Generator().manual_seed(3))
    if lead_in:
        action.before = {site.key: before}
    held = capture(model, [site], ids(3), action)[site.key]
    for row in range(3):
        masks = row_masks(dense[row], rule, bos=bos, before=before[row] if lead_in else None)
        assert torch.equal(held[row], dense[row] * masks)


def test_sequence_equals_a_per_passage_static_set(tiny_model):
    model = tiny_model("opt")
    sites = find_ffn_sites(model)
    passage = ids(1)
    sets = {}
    action = Windows(Rule("magnitude", 0.5, "sequence"))

    def remember(site, h):
        # The first token counts, though it runs dense.
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


def test_noise_is_in_the_last_bit_and_seeded(tiny_model):
    model = tiny_model("llama")
    site = find_ffn_sites(model)[0]
    dense = capture(model, [site], ids())[site.key]
    rule = Rule("magnitude", 0.5, 1)

    def held(noise):
        return capture(model, [site], ids(), Windows(rule, noise=noise))[site.key]

    plain, noisy = held(None), held(1)
    assert torch.equal(held(1), noisy)
    assert not torch.equal(held(2), noisy)
    either = (plain != 0) & (noisy != 0)
    steps = (noisy.view(torch.int32) - dense.view(torch.int32))[either]
    assert set(steps.unique().tolist()) == {-1, 0, 1}
    assert (steps == 0).float().mean() == pytest.approx(1 / 3, abs=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_noise_is_even_and_differs_between_sites_and_calls(tiny_model, dtype):
    sites = find_ffn_sites(tiny_model("llama"))
    action = Windows(Rule("magnitude", 0.03, 1), noise=3)  # one unit is left out
    h = torch.full((4, 100, 48), 1.5, dtype=dtype)
    noisy = [action(site, h)[:, 1:] for site in (sites[0], sites[1], sites[0])]
    for each in noisy:
        steps = ((each[each != 0] - 1.5) / torch.finfo(dtype).eps).round()
        for sign in (-1, 0, 1):
            assert (steps == sign).float().mean() == pytest.approx(1 / 3, abs=0.03)
    assert not torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy[0], noisy[2])


def test_padding_changes_no_set(tiny_model):
    model = tiny_model("llama")
    sites = find_ffn_sites(model)
    action = Windows(Rule("magnitude", 0.5, "sequence"))
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
    assert torch.equal(held[:, 1:], (dense * mask)[:, 1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "opt"])  # gated; flattened, and a ReLU's many zeros
@pytest.mark.parametrize("score", ["magnitude", "impact", "random"])
@pytest.mark.parametrize(("window", "choice"), [(1, "oracle"), (1, "causal"), (3, "causal")])
def test_numba_holds_bit_for_bit_what_torch_holds(tiny_model, family, dtype, score, window, choice):
    model = tiny_model(family).to(dtype)
    rule = Rule(score, 0.7, window, choice)
    held = []
    for kernels in ("torch", "numba"):
        action = Windows(rule, noise=2, selection=Selection(kernels))
        action.valid = torch.tensor([[True] * 9, [True] * 5 + [False] * 4])
        with watching(model, find_ffn_sites(model), action):
            held.append(logits(model, ids()))
    assert torch.equal(*held)


@pytest.mark.parametrize("kernels", ["torch", "numba"])
@pytest.mark.parametrize(("window", "choice"), [(1, "oracle"), (3, "oracle"), (3, "causal")])
def test_centred_units_take_their_centre(tiny_model, kernels, window, choice):
    model = tiny_model("llama")
    sites = find_ffn_sites(model)
    site, centre = sites[0], 0.05
    rule = Rule("centred", 0.7, window, choice)
    kept = n_kept(site.n_units, rule.sparsity)
    centres = {one.key: centre for one in sites}
    dense = capture(model, sites[:1], ids())[site.key]
    action = Windows(rule, centres=centres, selection=Selection(kernels))
    held = action(site, dense)
    for row, offsets in zip(held, (dense - centre).abs(), strict=True):
        for start in range(0, 9, window):
            before = offsets[start - window : start] if start else offsets[:1]
            means = (before if choice == "causal" else offsets[start : start + window]).mean(dim=0)
            best = means.topk(kept).indices
            left_out = torch.ones(site.n_units, dtype=torch.bool)
            left_out[best] = False
            text = row[max(start, 1) : start + window]
            assert (text[:, left_out] == centre).all()
            assert not (text[:, best] == centre).any()
    assert torch.equal(held[:, 0], dense[:, 0])
    with pytest.raises(ConfigError, match="score centred needs the centres of calibration text"):
        Windows(rule)


@pytest.mark.parametrize("kernels", ["torch", "numba"])
@pytest.mark.parametrize("window", [1, 3])
def test_a_nan_names_its_site(tiny_model, kernels, window):
    model = tiny_model("llama")
    site = find_ffn_sites(model)[0]
    action = Windows(Rule("magnitude", 0.5, window), selection=Selection(kernels))
    h = torch.full((1, 4, site.n_units), torch.nan)
    with pytest.raises(ModelError, match=f"NaN.*{site.name}.*try dtype: float32"):
        action(site, h)


def test_auto_is_torch_where_numba_is_absent_or_the_dtype_is_another(tiny_model, without_numba):
    model = tiny_model("llama")
    site = find_ffn_sites(model)[0]
    rule = Rule("magnitude", 0.5, 1)
    h = torch.randn(2, 5, site.n_units, generator=torch.Generator().manual_seed(0))
    plain = Windows(rule)(site, h)
    assert torch.equal(Windows(rule, selection=Selection("auto"))(site, h), plain)


def test_a_static_rule_is_no_window():
    with pytest.raises(ConfigError, match="static"):
        Windows(Rule("magnitude", 0.5, "corpus"))

import pytest
import torch
from torch.nn.functional import cross_entropy

from keepset.calibrate import activations
from keepset.errors import CacheError
from keepset.hold.inputs import watching
from keepset.kinds import find_sites
from keepset.sites.ffn import find_ffn_sites

IDENTITY = {"model": "abc", "text": "def", "dtype": "torch.float32", "gradients": True}


def blocks(rows=3, tokens=8):
    return torch.randint(4, 260, (rows, tokens), generator=torch.Generator().manual_seed(2))


def loss(model, ids):
    logits = model(input_ids=ids, use_cache=False).logits
    return cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="sum")


def test_sites_that_are_no_inputs_are_passed_over(tiny_model):
    model = tiny_model("zamba2")
    moments = activations.collect_moments(model, find_sites(model), blocks())
    assert list(moments) == [site.key for site in find_ffn_sites(model)]


@pytest.mark.parametrize("family", ["llama", "opt", "zamba2"])
def test_moments_match_plain_sums(tiny_model, family):
    model = tiny_model(family)
    sites = find_ffn_sites(model)
    seen = {}
    with watching(model, sites, lambda site, h: seen.update({site.key: h})), torch.no_grad():
        model(input_ids=blocks())
    moments = activations.collect_moments(model, sites, blocks(), gradients=False, batch_tokens=8)
    for site in sites:
        h = seen[site.key].double().flatten(0, 1)
        norm = site.down_weight().double().norm(dim=1)
        found = moments[site.key]
        torch.testing.assert_close(found["abs_sum"], h.abs().sum(dim=0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found["square_sum"], h.square().sum(dim=0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            found["impact_sum"], h.abs().sum(dim=0) * norm, rtol=1e-5, atol=1e-6
        )
        assert torch.equal(found["nonzero"], (h != 0).sum(dim=0).double())
        assert "taylor_sum" not in found


# Families whose norms stay in float64: a finite difference needs it.
@pytest.mark.parametrize("family", ["opt", "gpt2"])
def test_taylor_is_the_directional_derivative_of_the_loss(tiny_model, family):
    """sum_t h_j dL/dh_j is dL/ds at s = 1 when unit j is scaled by s."""
    model = tiny_model(family).double()
    sites = find_ffn_sites(model)
    moments = activations.collect_moments(model, sites, blocks(), gradients=True, batch_tokens=8)
    site, unit, step = sites[1], 7, 1e-5

    def scaled(by):
        def action(at, h):
            return torch.cat([h[..., :unit], h[..., unit, None] * by, h[..., unit + 1 :]], dim=-1)

        with watching(model, [site], action), torch.no_grad():
            return float(loss(model, blocks()))

    slope = (scaled(1 + step) - scaled(1 - step)) / (2 * step)
    assert float(moments[site.key]["taylor_sum"][unit]) == pytest.approx(slope, rel=1e-5)
    assert moments[site.key]["taylor_abs_sum"][unit] >= abs(moments[site.key]["taylor_sum"][unit])


def test_recording_leaves_no_gradient_and_no_hook(tiny_model):
    model = tiny_model("llama")
    activations.collect_moments(
        model, find_ffn_sites(model), blocks(), gradients=True, batch_tokens=8
    )
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.fixture
def cache(tiny_model, tmp_path):
    model = tiny_model("llama")
    moments = activations.collect_moments(
        model, find_ffn_sites(model), blocks(), gradients=True, batch_tokens=8
    )
    path = tmp_path / "activations.safetensors"
    activations.save(moments, path, IDENTITY)
    return path, moments


def test_the_cache_comes_back_whole(cache):
    path, moments = cache
    found = activations.load(path, IDENTITY)
    assert list(found) == list(moments)
    for key, site in moments.items():
        for name, tensor in site.items():
            assert torch.equal(found[key][name], tensor)


@pytest.mark.parametrize(
    ("key", "value"), [("model", "other"), ("text", "other"), ("gradients", False)]
)
def test_a_stale_cache_is_refused_by_name(cache, key, value):
    with pytest.raises(CacheError, match=f"stale activation cache: {key} is .*delete the file"):
        activations.load(cache[0], {**IDENTITY, key: value})


def test_a_truncated_cache_is_refused(cache):
    path, _ = cache
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CacheError, match="cannot be read"):
        activations.load(path, IDENTITY)


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "activations.safetensors"
    path.write_bytes(b"not a cache at all")
    with pytest.raises(CacheError, match="cannot be read"):
        activations.load(path, IDENTITY)
    with pytest.raises(CacheError, match="cannot be read"):
        activations.load(tmp_path / "absent.safetensors", IDENTITY)

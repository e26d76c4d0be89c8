import gc

import pytest
import torch
from torch.nn.functional import cross_entropy

from keepset.calibrate import activations, groups as document_groups
from keepset.calibrate.channels import Scorer
from keepset.errors import CacheError, ModelError
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
    states = {site.key for site in find_sites(model, ["state"])}
    assert [*moments] == [site.key for site in find_sites(model) if site.key not in states]


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


@pytest.mark.parametrize("family", ["llama", "opt"])
def test_sums_are_kept_apart_by_groups_of_documents(tiny_model, family):
    model = tiny_model(family)
    sites = find_ffn_sites(model)
    text = blocks(rows=5)
    documents = torch.tensor([3, 3, 8, 3, 0])
    both = {"gradients": True, "batch_tokens": 64}
    moments = activations.collect_moments(model, sites, text, documents=documents, **both)
    for group, document in enumerate((3, 8, 0)):
        part = text[documents == document]
        alone = activations.collect_moments(model, sites, part, **both)
        for site in sites:
            found = moments[site.key]
            assert float(found["tokens"][group]) == part.numel()
            for total, by_group in activations.BY_GROUP.items():
                torch.testing.assert_close(
                    found[by_group][group], alone[site.key][total], rtol=1e-4, atol=1e-6
                )
    for sums in moments.values():
        for total, by_group in activations.BY_GROUP.items():
            assert torch.equal(sums[total], sums[by_group].sum(dim=0))


def test_more_documents_than_groups_are_dealt_round_robin():
    documents = torch.arange(20).repeat_interleave(2)
    groups = document_groups.deal(documents)
    assert document_groups.count(groups) == 16
    assert groups[:2].tolist() == [0, 0]
    assert groups[32:].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    # Four blocks are in each of the first four groups, two in each of the others.
    assert document_groups.holding(groups, 1) == [4]
    assert document_groups.holding(groups, 5) == [4, 5, 6]
    assert document_groups.holding(groups, 25) == [0, *range(4, 16)]
    assert document_groups.holding(groups, 999) == list(range(16))


def test_no_pass_is_kept_after_its_gradient(tiny_model):
    model = tiny_model("llama")
    gc.collect()
    gc.disable()  # what only a search for circles would free counts as kept
    try:
        activations.collect_moments(model, find_ffn_sites(model), blocks(), gradients=True)
        tensors = (each for each in gc.get_objects() if issubclass(type(each), torch.Tensor))
        kept = [tensor for tensor in tensors if tensor.grad_fn is not None]
    finally:
        gc.enable()
    assert not kept


def test_a_bos_is_read_and_in_no_sum(tiny_model):
    model = tiny_model("llama")
    sites = find_ffn_sites(model)
    text, seen = blocks(), {}
    with_bos = torch.cat([torch.full((3, 1), 1), text], dim=1)
    with watching(model, sites, lambda site, h: seen.update({site.key: h})), torch.no_grad():
        model(input_ids=with_bos)
    moments = activations.collect_moments(model, sites, text, bos=1, gradients=True, batch_tokens=8)
    bare = activations.collect_moments(model, sites, text, gradients=True)
    for site in sites:
        h, sums = seen[site.key][:, 1:].double().flatten(0, 1), moments[site.key]
        torch.testing.assert_close(sums["abs_sum"], h.abs().sum(0), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(sums["sample"], h[:32].float(), rtol=1e-4, atol=1e-6)
        assert sums["tokens"].sum() == text.numel()
        assert not torch.allclose(sums["taylor_sum"], bare[site.key]["taylor_sum"], rtol=1e-3)


def test_ids_that_the_model_does_not_know_are_refused(tiny_model):
    model, text = tiny_model("mamba2"), blocks()
    text[1, 3] = 4000
    with pytest.raises(ModelError, match="calibration blocks: token id 4000 is beyond"):
        activations.collect_moments(model, [], text)
    with pytest.raises(ModelError, match="calibration blocks: token id 4000 is beyond"):
        Scorer(model, [], text, 64)


@pytest.mark.parametrize(("family", "gradients"), [("llama", False), ("opt", True)])
def test_sums_that_are_not_finite_are_refused(tiny_model, family, gradients):
    model = tiny_model(family)
    site = find_ffn_sites(model)[1]
    with torch.no_grad():
        site.up[0].module.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=rf"NaN or infinity in the activations of {site.name}"):
        activations.collect_moments(model, [site], blocks(), gradients=gradients)


def test_a_gradient_that_is_not_finite_is_refused(tiny_model):
    """In half precision a gradient overflows long before a loss does."""
    model = tiny_model("llama")
    site = find_ffn_sites(model)[0]

    def spoil(_module, _args, output):
        output.register_hook(lambda gradient: gradient * float("inf"))

    handle = site.down.register_forward_hook(spoil)
    with pytest.raises(ModelError, match=rf"the gradient of {site.name}; try dtype: float32"):
        activations.collect_moments(model, [site], blocks(), gradients=True)
    handle.remove()


def test_products_of_halves_do_not_overflow(tiny_model):
    """h and dL/dh of a float16 model can be finite where their product in float16 is not."""
    model = tiny_model("opt")
    site = find_ffn_sites(model)[0]
    with torch.no_grad():
        site.up[0].module.weight.mul_(2.0**10)
        site.down.weight.mul_(2.0**-8)

    def magnify(_module, _args, output):
        output.register_hook(lambda gradient: gradient * 2.0**17)

    handle = site.down.register_forward_hook(magnify)
    whole = activations.collect_moments(model, [site], blocks(), gradients=True)[site.key]
    half = activations.collect_moments(model.half(), [site], blocks(), gradients=True)[site.key]
    handle.remove()
    assert float(whole["taylor_abs_sum"].max()) > 1e5
    scale = float(whole["taylor_abs_sum"].max())
    torch.testing.assert_close(half["taylor_sum"], whole["taylor_sum"], rtol=0, atol=scale / 50)


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


@pytest.mark.parametrize("layer", ["model.norm", "lm_head"])
def test_what_is_broken_behind_all_sites_is_refused(tiny_model, layer):
    model = tiny_model("llama")
    model.get_submodule(layer).weight.data[-1] = float("nan")
    with pytest.raises(ModelError, match="NaN or infinity in the logits"):
        activations.collect_moments(model, find_ffn_sites(model), blocks())


def test_text_and_bos_are_checked(tiny_model):
    model = tiny_model("llama")
    with pytest.raises(ModelError, match="no calibration blocks"):
        activations.collect_moments(model, find_ffn_sites(model), blocks()[:0])
    with pytest.raises(ModelError, match="calibration blocks: token id 9999 is beyond"):
        activations.collect_moments(model, find_ffn_sites(model), blocks(), bos=9999)

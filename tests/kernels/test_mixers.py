"""The implementations of Mamba-2 mixers inside models that decode with a cache."""

from __future__ import annotations

import pytest
import torch
from transformers.models.mamba2 import modeling_mamba2

from decoding import DEVICE, prompt, reference
from keepset.decode import generate as gen
from keepset.decode import sparse_decoding
from keepset.errors import ConfigError, KernelError
from keepset.hold.cut import prune_states
from keepset.kernels import choice, triton_state
from keepset.kernels.choice import choosing
from keepset.kernels.dispatch import CONV, SCAN, STEP, UPDATE
from keepset.kernels.mixers import bound, mixer_kernels, scan_path
from keepset.kernels.scan import chunk_scan
from keepset.settings import Kernels
from keepset.sites.state import find_state_sites
from state_models import shape

NAMES = (SCAN, STEP, CONV, UPDATE)


@pytest.fixture
def model_of(tiny_model):
    """`tiny_model` where kernels run."""
    return lambda family, **overrides: tiny_model(family, **overrides).to(DEVICE)


def functions():
    return [getattr(modeling_mamba2, name) for name in NAMES]


@pytest.mark.parametrize("word", ["triton", "torch"])
@pytest.mark.parametrize("family", ["mamba2", "falcon_h1"])  # the second gates within the step
def test_tokens_are_those_of_the_whole_context(model_of, family, word):
    model, ids = model_of(family, **shape(family, groups=2, n_state=6)), prompt(5, device=DEVICE)
    with choosing(word):
        run = gen.generate(model, ids, 5)
    assert run.mixers == {"scan": "torch", "state": word}
    assert torch.equal(run.tokens, reference(model, ids, 5, None, None))


def test_layers_that_keep_unlike_numbers_of_channels(model_of):
    model, ids = (
        model_of("mamba2", **shape("mamba2", groups=2, n_state=7)),
        prompt(5, device=DEVICE),
    )
    generator = torch.Generator().manual_seed(3)
    kept = {}
    for site, count in zip(find_state_sites(model), (5, 3), strict=True):
        order = torch.rand(site.n_groups, site.n_state, generator=generator).argsort(dim=1)
        kept[site.key] = order < count
    prune_states(model, kept)
    assert [site.n_state for site in find_state_sites(model)] == [5, 3]
    with sparse_decoding(model, None, kernels=Kernels(state="triton")) as session:
        out = model.generate(ids, max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert session.mixers["state"] == "triton"
    assert torch.equal(out[0, 5:].cpu(), reference(model, ids, 5, None, None))


def test_the_step_that_runs_is_the_kernel(model_of, monkeypatch):
    """The model's output is the kernel's: nothing is computed beside it."""
    model, ids = model_of("mamba2"), prompt(5, device=DEVICE)
    right, calls = triton_state.state_step, []

    def flipped(*arguments, **named):
        calls.append(1)
        y = right(*arguments, **named)
        return y if len(calls) == 1 else y.flip(-1)

    def logits(word):
        with choosing(word), mixer_kernels(model), torch.inference_mode():
            cache = model(input_ids=ids, use_cache=True).cache_params
            return model(input_ids=ids[:, :1], cache_params=cache, use_cache=True).logits

    monkeypatch.setattr(triton_state, "state_step", flipped)
    assert not torch.allclose(logits("triton"), logits("torch"), atol=1e-2)
    assert len(calls) == 3  # the trial, and two layers


def test_a_refused_step_runs_in_torch(model_of, monkeypatch):
    def refusing(*_, **__):
        raise KernelError("no such state")

    monkeypatch.setattr(triton_state, "state_step", refusing)
    monkeypatch.setattr(choice, "_refused", {})
    model, ids = model_of("mamba2"), prompt(5, device=DEVICE)
    with choosing("triton"):
        run = gen.generate(model, ids, 4)
    assert run.mixers["state"] == "torch"
    assert "no such state" in choice.refusals()[0]
    assert torch.equal(run.tokens, reference(model, ids, 4, None, None))


def test_everything_is_put_back(model_of):
    model, before = model_of("mamba2"), functions()
    with choosing("triton"), mixer_kernels(model) as ran:
        assert getattr(modeling_mamba2, SCAN) is chunk_scan
        with mixer_kernels(model) as inner:
            assert inner is ran
        assert getattr(modeling_mamba2, SCAN) is chunk_scan
    with pytest.raises(RuntimeError, match="stop"), mixer_kernels(model):
        raise RuntimeError("stop")
    assert functions() == before
    with mixer_kernels(model_of("llama")) as ran:
        assert ran == {}


@pytest.mark.parametrize("key", ["scan", "state"])
def test_mamba_ssm_by_name_is_an_error_where_it_cannot_run(model_of, key):
    model = model_of("mamba2")
    with (
        choosing(Kernels(**{key: "mamba-ssm"})),
        pytest.raises(ConfigError, match=rf"kernels\.{key}: mamba-ssm runs on CUDA GPUs"),
        mixer_kernels(model),
    ):
        pass
    assert scan_path(model) == "torch"


def bind(name):
    """A function of mamba_ssm where transformers would bind it; it runs nowhere."""

    def implementation(*_, **__):
        raise AssertionError("mamba-ssm was called on a CPU")

    implementation.__module__ = "mamba_ssm.ops.triton"

    def wrapped(*arguments, **named):
        return implementation(*arguments, **named)

    wrapped.__module__ = "transformers.models.mamba2.modeling_mamba2"
    wrapped.__wrapped__ = getattr(modeling_mamba2, name).__wrapped__
    return wrapped


@pytest.mark.parametrize("word", ["auto", "torch"])
def test_a_package_that_is_bound_is_not_called_on_a_cpu(model_of, monkeypatch, word):
    model, ids = model_of("mamba2"), prompt(5, device=DEVICE)
    expected = gen.generate(model, ids, 4).tokens
    for name in NAMES:
        monkeypatch.setattr(modeling_mamba2, name, bind(name))
    assert bound(modeling_mamba2, STEP) == "mamba-ssm"
    with choosing(word):
        run = gen.generate(model, ids, 4)
    assert run.mixers == {"scan": "torch", "state": "torch"}
    assert torch.equal(run.tokens, expected)

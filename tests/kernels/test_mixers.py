"""The implementations of Mamba-2 mixers inside models that decode with a cache."""

from __future__ import annotations

import pytest
import torch
from transformers.models.mamba2 import modeling_mamba2

from decoding import DEVICE, prompt, reference
from keepset.decode import generate as gen, sparse_decoding
from keepset.errors import ConfigError, KernelError
from keepset.hold.cut import prune_states
from keepset.kernels import triton_state
from keepset.kernels.dispatch import CONV, SCAN, STEP, UPDATE
from keepset.kernels.mixers import mixer_kernels, provider, provider_for
from keepset.kernels.selection import Selection
from keepset.kinds import find_sites
from keepset.measure.runner import Runner
from keepset.rules.rule import Rule
from keepset.settings import Kernels
from keepset.sites.state import find_state_sites
from state_models import shape

SCANS = "numba" if DEVICE == "cpu" else "torch"
"""What runs the scans here where nothing else is said."""
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
    run = gen.generate(model, ids, 5, kernels=word)
    assert run.mixers == {"scan": "torch" if word == "torch" else SCANS, "state": word}
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

    def flipped(*arguments, **options):
        calls.append(1)
        y = right(*arguments, **options)
        return y if len(calls) == 1 else y.flip(-1)

    def logits(word):
        with mixer_kernels(model, Selection(word)), torch.inference_mode():
            cache = model(input_ids=ids, use_cache=True).cache_params
            return model(input_ids=ids[:, :1], cache_params=cache, use_cache=True).logits

    monkeypatch.setattr(triton_state, "state_step", flipped)
    assert not torch.allclose(logits("triton"), logits("torch"), atol=1e-2)
    assert len(calls) == 3  # the trial, and two layers


def test_a_refused_step_runs_in_torch(model_of, monkeypatch):
    def refusing(*_, **__):
        raise KernelError("no such state")

    monkeypatch.setattr(triton_state, "state_step", refusing)
    model, ids = model_of("mamba2"), prompt(5, device=DEVICE)
    selection = Selection("triton")
    run = gen.generate(model, ids, 4, kernels=selection)
    assert run.mixers["state"] == "torch"
    assert "no such state" in selection.refusals[0]
    assert torch.equal(run.tokens, reference(model, ids, 4, None, None))


def test_everything_is_put_back(model_of):
    model, before, selection = model_of("mamba2"), functions(), Selection("triton")
    with mixer_kernels(model, selection) as ran:
        running = getattr(modeling_mamba2, SCAN)
        assert ran["scan"] == SCANS
        assert running not in before
        with mixer_kernels(model, selection) as inner:
            assert inner is ran
        assert getattr(modeling_mamba2, SCAN) is running
    with pytest.raises(RuntimeError, match="stop"), mixer_kernels(model, selection):
        raise RuntimeError("stop")
    assert functions() == before
    with mixer_kernels(model_of("llama"), selection) as ran:
        assert ran == {}


def test_two_runners_with_different_kernels_do_not_see_each_other(model_of, monkeypatch):
    """Each runs and refuses by itself; at the same time they cannot run, and are told so."""

    def refusing(*_, **__):
        raise KernelError("no such state")

    model, ids = model_of("mamba2"), prompt(5, device=DEVICE)
    triton, torch_alone = (Runner(model, [], kernels=word) for word in ("triton", "torch"))
    expected = gen.generate(model, ids, 4, kernels=torch_alone.selection)
    with monkeypatch.context() as patch:
        patch.setattr(triton_state, "state_step", refusing)
        gen.generate(model, ids, 4, kernels=triton.selection)
    assert triton.selection.refusals
    again = gen.generate(model, ids, 4, kernels=torch_alone.selection)
    assert not torch_alone.selection.refusals
    assert again.mixers == expected.mixers == {"scan": "torch", "state": "torch"}
    assert gen.generate(model, ids, 4, kernels="triton").mixers["state"] == "triton"
    before = functions()
    with (
        torch_alone.holding(None),
        pytest.raises(ConfigError, match=r"kernels\.state: triton was chosen while .* with torch"),
        triton.holding(None),
    ):
        pass
    with torch_alone.holding(None):  # auto asks for nothing of its own
        Runner(model, find_sites(model)).block_nll(ids)
    assert functions() == before


@pytest.mark.parametrize("key", ["scan", "state"])
def test_mamba_ssm_by_name_is_an_error_where_it_cannot_run(tiny_model, key):
    model = tiny_model("mamba2")
    with (
        pytest.raises(ConfigError, match=rf"kernels\.{key}: mamba-ssm runs on CUDA GPUs"),
        mixer_kernels(model, Selection(Kernels(**{key: "mamba-ssm"}))),
    ):
        pass
    assert provider_for(model, "scan", Selection()) == "numba"
    assert provider_for(model, "scan", Selection("torch")) == "torch"


def bind(name):
    """A function of mamba_ssm where transformers would bind it; it runs nowhere."""

    def implementation(*_, **__):
        raise AssertionError("mamba-ssm was called on a CPU")

    implementation.__module__ = "mamba_ssm.ops.triton"

    def wrapped(*arguments, **options):
        return implementation(*arguments, **options)

    wrapped.__module__ = "transformers.models.mamba2.modeling_mamba2"
    wrapped.__wrapped__ = getattr(modeling_mamba2, name).__wrapped__
    return wrapped


@pytest.mark.parametrize("word", ["auto", "torch"])
def test_a_package_that_is_bound_is_not_called_on_a_cpu(tiny_model, monkeypatch, word):
    model, ids = tiny_model("mamba2"), prompt(5)
    expected = gen.generate(model, ids, 4).tokens
    for name in NAMES:
        monkeypatch.setattr(modeling_mamba2, name, bind(name))
    assert provider(modeling_mamba2, STEP) == "mamba-ssm"
    run = gen.generate(model, ids, 4, kernels=word)
    assert run.mixers == {"scan": "numba" if word == "auto" else "torch", "state": "torch"}
    assert torch.equal(run.tokens, expected)


@pytest.mark.parametrize("word", ["auto", "torch", "numba"])
def test_where_numba_is_absent_torch_runs_the_scan(tiny_model, without_numba, word):
    model, ids = tiny_model("mamba2"), prompt(5)
    expected = gen.generate(model, ids, 4, kernels="torch").tokens
    if word == "numba":
        with pytest.raises(ConfigError, match=r"kernels\.scan: .*pip install numba"):
            Runner(model, [], kernels=Kernels(scan=word)).block_nll(ids)
        return
    run = gen.generate(model, ids, 4, kernels=Kernels(scan=word))
    assert run.mixers["scan"] == "torch"
    assert torch.equal(run.tokens, expected)


def test_lead_ins_run_with_the_chosen_kernels(tiny_model, monkeypatch):
    """transformers' own scan runs neither before a block nor in it."""
    rule = Rule("impact", 0.5, 4, "causal", site="state", access="write")
    model, ids = tiny_model("mamba2"), prompt(12)
    results = [
        Runner(model, find_sites(model), kernels=word).block_nll(ids, rule, ids.flip(1))
        for word in ("torch", "numba")
    ]
    torch.testing.assert_close(*results, rtol=1e-5, atol=0)
    monkeypatch.setattr(modeling_mamba2, SCAN, bind(SCAN))
    Runner(model, find_sites(model)).block_nll(ids, rule, ids.flip(1))

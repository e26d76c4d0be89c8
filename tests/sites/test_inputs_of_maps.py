"""Which linear maps read one tensor, and who is left out."""

from __future__ import annotations

import pytest
import torch

from keepset.errors import ModelError
from keepset.hold.inputs import hold_windows, output_norms, watching
from keepset.kinds import find_sites
from keepset.rules.masks import top_mask
from keepset.rules.rule import Rule
from keepset.sites.inputs import find_input_sites

IDS = torch.randint(4, 260, (2, 7), generator=torch.Generator().manual_seed(1))


def logits(model):
    with torch.inference_mode():
        return model(input_ids=IDS, use_cache=False).logits


def test_maps_that_read_one_tensor_share_a_site(tiny_model):
    model = tiny_model("llama")
    sites = find_input_sites(model)
    attention, mlp = model.model.layers[1].self_attn, model.model.layers[1].mlp
    layer = {site.key: [module for module, _ in site.readers] for site in sites if site.layer == 1}
    assert layer == {
        "input.001.q_proj": [attention.q_proj, attention.k_proj, attention.v_proj],
        "input.001.o_proj": [attention.o_proj],
        "input.001.gate_proj": [mlp.gate_proj, mlp.up_proj],
    }
    assert sites[0].name == "model.layers.0.self_attn.q_proj"


def test_down_projections_are_the_neurons_and_routers_are_none(tiny_model):
    for family in ("qwen3_moe", "qwen2_moe", "mixtral"):
        model = tiny_model(family)
        readers = {m for site in find_input_sites(model) for m, _ in site.readers}
        names = {name for name, module in model.named_modules() if module in readers}
        assert not [name for name in names if name.endswith(("down_proj", ".gate", "expert_gate"))]
        assert [name for name in names if name.endswith("experts")]


def test_depths_that_share_a_module_are_sites_of_their_own(tiny_model):
    model = tiny_model("llama")
    model.model.layers[1].mlp = model.model.layers[0].mlp
    shared = [site for site in find_input_sites(model) if site.part == "gate_proj"]
    assert [(site.key, site.call, site.n_calls) for site in shared] == [
        ("input.000.gate_proj", 0, 2),
        ("input.001.gate_proj", 1, 2),
    ]
    seen = {}
    with watching(model, shared, lambda site, h: seen.update({site.key: h})):
        logits(model)
    assert not torch.equal(*seen.values())


def test_norms_are_over_all_maps_that_read_a_unit(tiny_model):
    model = tiny_model("llama")
    site = find_input_sites(model)[0]
    attention = model.model.layers[0].self_attn
    weights = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    torch.testing.assert_close(output_norms(site), torch.cat(weights).norm(dim=0))
    torch.testing.assert_close(output_norms(site), site.down_weight().norm(dim=1))


def test_norms_of_experts_are_over_all_experts(tiny_model):
    model = tiny_model("qwen3_moe")
    site = next(s for s in find_input_sites(model) if s.part == "experts")
    weight = site.down.gate_up_proj  # (experts, outputs, inputs)
    torch.testing.assert_close(output_norms(site), weight.square().sum(dim=(0, 1)).sqrt())


@pytest.mark.parametrize("score", ["magnitude", "impact"])
def test_a_dynamic_rule_is_a_mask_on_every_map_that_reads(tiny_model, score):
    model = tiny_model("llama")
    sites = find_sites(model, ["input"])
    with hold_windows(model, sites, Rule(score, 0.6, 1, site="input")):
        held = logits(model)
    handles = []
    for site in sites:
        norms = output_norms(site) if score == "impact" else 1.0
        for module, _ in site.readers:

            def mask(_, args, n=site.n_units, norms=norms):
                kept = top_mask(args[0].abs().float() * norms, n - int(0.6 * n))
                kept[:, 0] = True
                return (args[0] * kept,)

            handles.append(module.register_forward_pre_hook(mask))
    expected = logits(model)
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(held, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(held, logits(model), atol=1e-3)


def test_all_that_read_a_tensor_are_one_call_of_the_action(tiny_model):
    model = tiny_model("llama")
    sites = find_input_sites(model)
    calls = []
    with watching(model, sites, lambda site, _: calls.append(site.key)):
        logits(model)
        logits(model)
    assert calls == 2 * [site.key for site in sites]


def test_a_model_without_weights_is_refused():
    from transformers import AutoModelForCausalLM, LlamaConfig

    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match="found by running it; load its weights"):
        find_input_sites(model)


def test_a_model_that_does_not_run_says_why(tiny_model, monkeypatch):
    model = tiny_model("llama")

    def broken(*_, **__):
        raise ValueError("needs an image")

    monkeypatch.setattr(model.model, "forward", broken)
    with pytest.raises(ModelError, match="does not run: needs an image"):
        find_input_sites(model)

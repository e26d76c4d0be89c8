"""The neurons of routed experts are those of one wide FFN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from keepset.calibrate.activations import collect_moments
from keepset.errors import ModelError
from keepset.hold.inputs import hold_windows, watching
from keepset.hold.static import hold_static
from keepset.rules.rule import Rule
from keepset.sites.expert_neurons import ExpertNeurons
from keepset.sites.ffn import find_ffn_sites
from moe_models import SHAPES, E, K

Factory = Callable[..., PreTrainedModel]
IDS = torch.randint(4, 260, (2, 9), generator=torch.Generator().manual_seed(2))


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def routed(model: PreTrainedModel) -> list[ExpertNeurons]:
    return [site for site in find_ffn_sites(model) if isinstance(site, ExpertNeurons)]


@pytest.mark.parametrize("family", SHAPES)
def test_a_layer_is_a_wide_ffn(tiny_model: Factory, family: str) -> None:
    model = tiny_model(family, **SHAPES[family])
    sites = routed(model)
    assert sites
    assert all(site.n_units % E == 0 and site.n_experts == E for site in sites)
    dense = logits(model)
    seen: dict[str, Tensor] = {}

    def look(site: Any, h: Tensor) -> None:
        seen[site.key] = h

    with watching(model, sites, look):
        assert torch.equal(logits(model), dense)
    for site in sites:
        active = (seen[site.key].view(*IDS.shape, E, -1) != 0).any(dim=-1)
        assert (active.sum(dim=-1) <= K).all()
    # h as it is gives what the model's own function gives.
    with watching(model, sites, lambda _, h: h.clone()):
        torch.testing.assert_close(logits(model), dense, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", SHAPES)
def test_a_neuron_left_out_is_a_column_of_zeros(tiny_model: Factory, family: str) -> None:
    model = tiny_model(family, **SHAPES[family])
    site = routed(model)[-1]
    mask = torch.ones(site.n_units, dtype=torch.bool)
    first = 3 * (site.n_units // E)
    mask[first : first + 4] = False
    with hold_static(model, [site], {site.key: mask}):
        held = logits(model)
    module: Any = site.down
    columns = module.down_proj[3]
    dense = logits(model)[:, 0]
    (columns[:4] if module.is_transposed else columns[:, :4]).zero_()
    assert torch.equal(site.down_weight()[~mask], torch.zeros_like(site.down_weight()[~mask]))
    expected = logits(model)
    torch.testing.assert_close(held[:, 1:], expected[:, 1:], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(held[:, 0], dense, rtol=1e-4, atol=2e-5)  # first tokens run dense


def test_leaving_out_what_routing_leaves_out_costs_nothing(tiny_model: Factory) -> None:
    model = tiny_model("qwen3_moe", **SHAPES["qwen3_moe"])
    dense = logits(model)
    sites = routed(model)
    for sparsity, same in ((1 - K / E, True), (0.9, False)):
        with hold_windows(model, sites, Rule("magnitude", sparsity, 1)):
            held = logits(model)
        assert torch.allclose(held, dense, rtol=1e-4, atol=2e-5) == same


def test_sums_are_those_of_h(tiny_model: Factory) -> None:
    model = tiny_model("gpt_oss", **SHAPES["gpt_oss"])
    sites = routed(model)
    seen: dict[str, Tensor] = {}
    with watching(model, sites, lambda site, h: seen.__setitem__(site.key, h)):
        logits(model)
    moments = collect_moments(model, sites, IDS, gradients=True)
    for site in sites:
        h = seen[site.key].double()
        torch.testing.assert_close(
            moments[site.key]["abs_sum"], h.abs().sum(dim=(0, 1)), rtol=1e-5, atol=1e-7
        )
        norms = site.down_weight().double().norm(dim=1)
        torch.testing.assert_close(moments[site.key]["weight_norm"], norms, rtol=1e-6, atol=0)
        # Taylor: the derivative by a factor on one neuron.
        unit = int(h.abs().sum(dim=(0, 1)).argmax())
        values = []
        for factor in (1.02, 0.98):
            scale = torch.ones(site.n_units)
            scale[unit] = factor
            with (
                torch.no_grad(),
                watching(model, [site], lambda _, h, scale=scale: h * scale),
            ):
                out = model(input_ids=IDS, use_cache=False).logits[:, :-1].double()
            values.append(
                float(
                    nn.functional.cross_entropy(
                        out.flatten(0, 1), IDS[:, 1:].flatten(), reduction="sum"
                    )
                )
            )
        slope = (values[0] - values[1]) / 0.04
        assert float(moments[site.key]["taylor_sum"][unit]) == pytest.approx(slope, rel=2e-2)


def test_what_cannot_be_held_is_refused_by_name(tiny_model: Factory) -> None:
    model = tiny_model("qwen3_moe", **SHAPES["qwen3_moe"])
    experts: Any = model.model.layers[1].mlp.experts
    packed = nn.Parameter(torch.zeros(E, 4, 4, dtype=torch.uint8), requires_grad=False)
    experts.down_proj = packed
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.experts: the experts are quantised"):
        find_ffn_sites(model)
    for part in ("down_proj", "gate_up_proj"):
        model = tiny_model("qwen3_moe", **SHAPES["qwen3_moe"])
        experts = model.model.layers[1].mlp.experts
        codes = getattr(experts, part).to(torch.float8_e4m3fn)
        setattr(experts, part, nn.Parameter(codes, requires_grad=False))
        with pytest.raises(ModelError, match=rf"mlp\.experts: .*{part} is torch\.float8"):
            find_ffn_sites(model)
    del experts.down_proj
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.experts: .*no down_proj"):
        find_ffn_sites(model)

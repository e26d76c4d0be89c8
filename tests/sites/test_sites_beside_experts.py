"""The FFN that every token passes beside routed experts, and dense layers among routed ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from keepset.calibrate.activations import collect_moments
from keepset.calibrate.units import unit_table
from keepset.decode import sparse_decoding
from keepset.errors import ConfigError, ModelError
from keepset.hold.inputs import watching
from keepset.hold.static import hold_static
from keepset.measure.ablations import measure_ablations
from keepset.measure.runner import Runner
from keepset.rules.masks import Masks
from keepset.rules.rule import Rule
from keepset.sites.expert_neurons import ExpertNeurons
from keepset.sites.families import FAMILIES
from keepset.sites.ffn import Site, find_ffn_sites
from moe_models import SHAPES

Factory = Callable[..., PreTrainedModel]
IDS = torch.randint(4, 260, (2, 9), generator=torch.Generator().manual_seed(2))
_PLAIN = SHAPES["qwen3_moe"]
# Family -> its shape, and the keys of its sites.
BOTH = ["ffn.000", "ffn.000.shared", "ffn.001", "ffn.001.shared"]
MIXED = ["ffn.000", "ffn.001", "ffn.001.shared"]
BESIDE: dict[str, tuple[dict[str, Any], list[str]]] = {
    "qwen2_moe": (SHAPES["qwen2_moe"], BOTH),
    "deepseek_v3": (SHAPES["deepseek_v3"], MIXED),
    "glm4_moe": (SHAPES["glm4_moe"], MIXED),
    "ernie4_5_moe": (SHAPES["ernie4_5_moe"], MIXED),
    "granitemoeshared": ({**_PLAIN, "shared_intermediate_size": 20}, BOTH),
    "gemma4_text": (
        {**_PLAIN, "enable_moe_block": True, "top_k_experts": 2, "global_head_dim": 8}
        | {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0},
        BOTH,
    ),
    "nemotron_h": (
        {
            **_PLAIN,
            "num_hidden_layers": None,
            "layers_block_type": ["moe", "moe"],
            "moe_shared_expert_intermediate_size": 20,
            "moe_latent_size": None,
        },
        BOTH,
    ),
}


def logits(model: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def busiest(model: PreTrainedModel, sites: list[Site]) -> dict[str, int]:
    """Site key -> the unit with the largest activations: one that matters."""
    units = {}

    def look(site: Site, h: Tensor) -> None:
        units[site.key] = int(h.abs().sum(dim=(0, 1)).argmax())

    with watching(model, sites, look):
        logits(model)
    return units


def zero_column(site: Site, unit: int) -> None:
    """Take a unit's output column away, in the model's own weights."""
    down: Any = site.down
    if not isinstance(site, ExpertNeurons):
        down.weight[:, unit] = 0
        return
    expert, neuron = divmod(unit, site.n_units // site.n_experts)
    weight = down.down_proj[expert]
    (weight[neuron] if down.is_transposed else weight[:, neuron]).zero_()


@pytest.mark.parametrize("family", BESIDE)
def test_every_site_of_a_layer_is_held(tiny_model: Factory, family: str) -> None:
    shape, keys = BESIDE[family]
    model = tiny_model(family, **shape)
    sites = find_ffn_sites(model)
    assert [site.key for site in sites] == keys
    dense, units = logits(model), busiest(model, sites)
    assert sorted(units) == sorted(keys)
    for position, key in enumerate(keys):
        other = tiny_model(family, **shape)
        zero_column(find_ffn_sites(other)[position], units[key])
        mask = torch.ones(sites[position].n_units, dtype=torch.bool)
        with hold_static(model, [sites[position]], {key: mask}):
            assert torch.allclose(logits(model), dense, rtol=1e-4, atol=2e-5)
        mask[units[key]] = False
        with hold_static(model, [sites[position]], {key: mask}):
            held = logits(model)[:, 1:]
        # The first token runs dense, and later ones attend to it.
        with watching(model, [sites[position]], lambda _, h, mask=mask: h * mask):
            everywhere = logits(model)
        torch.testing.assert_close(everywhere, logits(other), rtol=1e-4, atol=2e-5)
        assert (held - dense[:, 1:]).abs().max() > 1e-4


def test_tables_count_the_units_of_a_layer_through(tiny_model: Factory) -> None:
    model = tiny_model("qwen2_moe", **SHAPES["qwen2_moe"])
    sites = find_ffn_sites(model)
    table = unit_table(sites, collect_moments(model, sites, IDS))
    n_routed, n_shared = sites[0].n_units, sites[1].n_units
    for _, units in table.groupby("layer"):
        assert list(units["unit"]) == list(range(n_routed + n_shared))
    unit = busiest(model, sites)["ffn.001.shared"]
    sample = table[(table["layer"] == 1) & (table["unit"] == n_routed + unit)]
    loss = measure_ablations(Runner(model, sites, batch_tokens=40), sites, sample, IDS, "test")

    def mean_loss() -> float:
        out = logits(model)[:, :-1].flatten(0, 1).double()
        return float(nn.functional.cross_entropy(out, IDS[:, 1:].flatten()))

    dense = mean_loss()
    zero_column(sites[3], unit)
    assert float(loss.iloc[0]) == pytest.approx(mean_loss() - dense, abs=1e-6)
    assert abs(float(loss.iloc[0])) > 1e-5


@pytest.mark.parametrize("family", ["qwen3_moe", "glm4_moe"])
def test_decoding_follows_static_rules_alone(tiny_model: Factory, family: str) -> None:
    model = tiny_model(family, **SHAPES[family])
    sites = find_ffn_sites(model)
    moments = collect_moments(model, sites, IDS)
    masks: Masks = {
        site.key: moments[site.key]["abs_sum"] > moments[site.key]["abs_sum"].median()
        for site in sites
    }
    rule = Rule("magnitude", 0.5, "corpus")
    with sparse_decoding(model, rule, moments=moments), torch.no_grad():
        first = model(input_ids=IDS[:, :5], use_cache=True)
        steps = [first.logits]
        for place in range(5, IDS.shape[1]):
            step = model(
                input_ids=IDS[:, place : place + 1],
                past_key_values=first.past_key_values,
                use_cache=True,
            )
            steps.append(step.logits)
    with hold_static(model, sites, masks):
        whole = logits(model)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, rtol=1e-4, atol=2e-5)
    for other in (Rule("magnitude", 0.5, 1), Rule("magnitude", 0.5, 4, "causal")):
        with (
            pytest.raises(ConfigError, match=r"mlp\.experts holds routed experts"),
            sparse_decoding(model, other),
        ):
            pass
    with sparse_decoding(model, Rule("magnitude", 0.0, 1)), torch.no_grad():
        assert torch.isfinite(model(input_ids=IDS).logits).all()


def test_dense_layers_among_routed_ones_are_never_passed_over(
    tiny_model: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("lfm2_moe", num_dense_layers=1)
    sites = find_ffn_sites(model)
    assert [site.name for site in sites] == [
        "model.layers.0.feed_forward.w2",
        "model.layers.1.feed_forward.experts",
    ]
    monkeypatch.delitem(FAMILIES, "lfm2_moe")
    monkeypatch.delitem(FAMILIES, "lfm2")  # whose layout would be recognised
    monkeypatch.delitem(FAMILIES, "lfm3")
    with pytest.raises(ModelError, match=r"lfm2_moe: no FFN was recognised.*w1"):
        find_ffn_sites(model)


def test_what_is_not_known_beside_experts_is_refused(tiny_model: Factory) -> None:
    model = tiny_model("qwen2_moe", **SHAPES["qwen2_moe"])
    block: Any = model.model.layers[1].mlp
    shared = block.shared_expert
    block.shared_expert = nn.Bilinear(2, 2, 2)
    with pytest.raises(ModelError, match=r"layer 1 .* is not known \(mlp\.shared_expert\)"):
        find_ffn_sites(model)
    block.shared_expert = shared
    block.another = copy.deepcopy(shared)
    with pytest.raises(ModelError, match=r"\(mlp\.shared_expert, mlp\.another\)"):
        find_ffn_sites(model)
    del block.another
    model.model.layers[1].self_attn.experts = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="layer 1 holds experts twice, self_attn"):
        find_ffn_sites(model)

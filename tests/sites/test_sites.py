"""Sites: found in every family, in order, and true to what the model multiplies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from keepset.errors import ModelError
from keepset.sites.families import FAMILIES, Family, Layout
from keepset.sites.ffn import Site, find_ffn_sites
from keepset.sites.state import find_state_sites

Factory = Callable[..., PreTrainedModel]

# Every family is run in tests/kinds/test_survey.py; these are looked at more closely.
WITH_FFN = [
    "apertus", "arcee", "bamba", "biogpt", "bloom", "codegen", "cohere", "cohere2", "diffllama",
    "exaone4", "falcon", "falcon_h1", "gemma", "gemma2", "gemma3_text", "glm", "glm4", "gpt2",
    "gpt_bigcode", "gpt_neo", "gpt_neox", "gptj", "granite", "granitemoehybrid", "llama",
    "mistral", "mpt", "nanochat", "nemotron", "nemotron_h", "olmo", "olmo2", "olmo3", "opt",
    "persimmon", "phi", "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "stablelm",
    "starcoder2", "xglm", "zamba2",
]  # fmt: skip
WITHOUT_FFN = sorted(n for n, family in FAMILIES.items() if family.architecture == "recurrent")
TOKENS = torch.tensor([[5, 17, 3, 200, 9, 44, 101], [7, 7, 250, 31, 12, 90, 4]])
WIDE = {"bloom": 128, "mpt": 128}  # these families fix the width at four times the model's


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    return model(TOKENS, use_cache=False).logits


@contextmanager
def masked(sites: list[Site], units: Tensor) -> Iterator[None]:
    """Zero `units` of h at every site."""

    def zero(_module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        return (args[0].index_fill(-1, units, 0.0),)

    downs = {site.down for site in sites}
    handles = [down.register_forward_pre_hook(zero) for down in downs]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def cut(site: Site, kept: Tensor) -> None:
    """Keep only the weights of `kept` units."""
    for projection in site.up:
        rows = torch.cat([kept + offset for offset in projection.offsets])
        module: Any = projection.module
        units_first = isinstance(module, nn.Linear)
        module.weight = nn.Parameter(module.weight[rows] if units_first else module.weight[:, rows])
        if module.bias is not None:
            module.bias = nn.Parameter(module.bias[rows])
        if isinstance(module, Conv1D):
            module.nf = len(rows)
    down: Any = site.down
    units_last = isinstance(down, nn.Linear)
    down.weight = nn.Parameter(down.weight[:, kept] if units_last else down.weight[kept])


@pytest.mark.parametrize("family", WITH_FFN)
def test_every_family_has_its_sites(tiny_model: Factory, family: str) -> None:
    model = tiny_model(family)
    sites = find_ffn_sites(model)
    depths = {"zamba2": [1, 3, 4, 5], "nemotron_h": [1, 3]}.get(family, [0, 1])
    assert [site.layer for site in sites] == depths
    assert [site.key for site in sites] == [f"ffn.{depth:03d}" for depth in depths]
    for site in sites:
        assert model.get_submodule(site.name) is site.down
        assert site.n_units == WIDE.get(family, 48)
        assert site.down_weight().shape == (site.n_units, 32)
        assert site.activation != "unknown"
        assert (site.call, site.n_calls) == (0, 1)


@pytest.mark.parametrize("family", WITH_FFN)
def test_h_reaches_the_hook_with_units_last(tiny_model: Factory, family: str) -> None:
    model = tiny_model(family)
    shapes: list[torch.Size] = []
    for site in find_ffn_sites(model):
        site.down.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape))
    logits(model)
    assert len(shapes) == len(find_ffn_sites(model))
    leading = (TOKENS.numel(),) if family == "opt" else tuple(TOKENS.shape)
    assert {tuple(shape) for shape in shapes} == {(*leading, WIDE.get(family, 48))}


@pytest.mark.parametrize("family", WITH_FFN)
def test_masking_a_unit_equals_zeroing_its_output_column(tiny_model: Factory, family: str) -> None:
    model = tiny_model(family)
    sites, dense = find_ffn_sites(model), logits(model)
    with masked(sites, torch.tensor([2, 30])):
        expected = logits(model)
    for site in sites:
        site.down_weight()[[2, 30]] = 0.0
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)
    assert (expected - dense).abs().max() > 1e-3


@pytest.mark.parametrize("family", [f for f in WITH_FFN if f != "zamba2"])
def test_cutting_units_equals_masking_them(tiny_model: Factory, family: str) -> None:
    model = tiny_model(family)
    sites = find_ffn_sites(model)
    dropped = torch.arange(1, sites[0].n_units, 3)
    kept = torch.tensor([j for j in range(sites[0].n_units) if j not in dropped])
    with masked(sites, dropped):
        expected = logits(model)
    for site in sites:
        assert site.up
        cut(site, kept)
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "gated", "projections", "activation"),
    [
        ("llama", True, 2, "silu"),
        ("gemma2", True, 2, "gelu_pytorch_tanh"),
        ("phi3", True, 1, "silu"),
        ("opt", False, 1, "relu"),
        ("gpt2", False, 1, "gelu_new"),
        ("bloom", False, 1, "gelu_pytorch_tanh"),
        ("zamba2", True, 0, "gelu"),
    ],
)
def test_shape_of_the_ffn(
    tiny_model: Factory, family: str, gated: bool, projections: int, activation: str
) -> None:
    site = find_ffn_sites(tiny_model(family))[0]
    assert (site.gated, len(site.up), site.activation) == (gated, projections, activation)


def test_fused_gate_and_up_carry_two_offsets(tiny_model: Factory) -> None:
    assert [p.offsets for p in find_ffn_sites(tiny_model("phi3"))[0].up] == [(0, 48)]
    assert [p.offsets for p in find_ffn_sites(tiny_model("llama"))[0].up] == [(0,), (0,)]


def test_opt_350m_with_its_projections_and_late_norms(tiny_model: Factory) -> None:
    model = tiny_model("opt", word_embed_proj_dim=16, do_layer_norm_before=False)
    assert [site.name for site in find_ffn_sites(model)] == [
        "model.decoder.layers.0.fc2",
        "model.decoder.layers.1.fc2",
    ]


@pytest.mark.parametrize("n_blocks", [1, 2])
def test_zamba2_depths_are_in_order_and_tied(tiny_model: Factory, n_blocks: int) -> None:
    model = tiny_model("zamba2", num_mem_blocks=n_blocks)
    sites = find_ffn_sites(model)
    order: list[str] = []
    for site in sites:
        site.down.register_forward_pre_hook(lambda *_, name=site.name: order.append(name))
    logits(model)
    assert order == [site.name for site in sites]
    assert len({id(site.down.weight) for site in sites}) == n_blocks
    assert sites[0].down.weight is sites[n_blocks].down.weight


def test_a_module_shared_over_depths_is_one_site_per_call(tiny_model: Factory) -> None:
    model = tiny_model("zamba2", num_mem_blocks=2)
    layers = model.model.layers
    layers[4].shared_transformer = layers[1].shared_transformer
    layers[5].shared_transformer = layers[3].shared_transformer
    sites = find_ffn_sites(model)
    assert [(site.layer, site.call, site.n_calls) for site in sites] == [
        (1, 0, 2),
        (3, 0, 2),
        (4, 1, 2),
        (5, 1, 2),
    ]
    calls: list[nn.Module] = []
    for down in {site.down: None for site in sites}:
        down.register_forward_pre_hook(lambda module, _: calls.append(module))
    logits(model)
    assert calls == [site.down for site in sites]
    assert [calls[:at].count(down) for at, down in enumerate(calls)] == [s.call for s in sites]


@pytest.mark.parametrize("family", WITHOUT_FFN)
def test_families_without_ffn_have_no_sites(tiny_model: Factory, family: str) -> None:
    assert find_ffn_sites(tiny_model(family)) == []


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_an_unknown_family_is_recognised_by_its_modules(
    tiny_model: Factory, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    model = tiny_model(family)
    known = find_ffn_sites(model)
    monkeypatch.delitem(FAMILIES, family)
    sites = find_ffn_sites(model)
    assert [site.down for site in sites] == [site.down for site in known]
    assert [site.gated for site in sites] == [site.gated for site in known]
    assert all(site.up == () for site in sites)


@pytest.mark.parametrize(
    "break_layer",
    [
        lambda layer: setattr(layer.mlp, "extra", nn.Linear(32, 48)),
        lambda layer: delattr(layer.mlp, "gate_proj"),
        lambda layer: delattr(layer, "mlp"),
    ],
)
def test_an_unknown_family_must_fit_exactly(
    tiny_model: Factory, monkeypatch: pytest.MonkeyPatch, break_layer: Callable[[Any], None]
) -> None:
    model = tiny_model("llama")
    monkeypatch.delitem(FAMILIES, "llama")
    break_layer(model.model.layers[1])
    with pytest.raises(ModelError, match="no FFN was recognised"):
        find_ffn_sites(model)


def test_an_unknown_family_must_fit_in_size(
    tiny_model: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    monkeypatch.delitem(FAMILIES, "llama")
    model.model.layers[1].mlp.up_proj = nn.Linear(32, 40)
    with pytest.raises(ModelError, match=r"mlp\.up_proj maps 32 values to 40"):
        find_ffn_sites(model)


def test_experts_that_are_stored_in_another_way_are_refused(tiny_model: Factory) -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.experts = nn.ModuleList([nn.Linear(4, 4)])
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.experts: .*cannot be held"):
        find_ffn_sites(model)


def test_an_unknown_model_is_told_what_to_do(
    tiny_model: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lfm2", "lfm2_moe", "lfm3"):
        monkeypatch.delitem(FAMILIES, name)
    with pytest.raises(ModelError) as caught:
        find_ffn_sites(tiny_model("lfm2"))
    for part in (
        "lfm2",
        "mlp.gate_proj+mlp.up_proj+mlp.down_proj",
        "feed_forward",
        "sites/families.py",
    ):
        assert part in str(caught.value)


def test_a_wrong_layout_names_the_module(
    tiny_model: Factory, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = Family("llama", Layout("mlp.fc2", ("mlp.fc1",)))
    monkeypatch.setitem(FAMILIES, "llama", family)
    with pytest.raises(ModelError, match=r"LlamaDecoderLayer has no module mlp\.fc2"):
        find_ffn_sites(tiny_model("llama"))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize("name", ["down_proj", "gate_proj"])
def test_a_quantized_projection_is_refused(
    tiny_model: Factory, name: str, dtype: torch.dtype
) -> None:
    model = tiny_model("llama")
    linear = model.model.layers[0].mlp.get_submodule(name)
    linear.weight = nn.Parameter(linear.weight.to(dtype), requires_grad=False)
    with pytest.raises(ModelError, match=rf"mlp\.{name} is a Linear.*without quantization"):
        find_ffn_sites(model)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize(
    ("family", "name"),
    [("mamba2", "in_proj"), ("qwen3_5_text", "in_proj_qkv"), ("mamba", "x_proj")],
)
def test_a_quantized_mixer_is_refused(
    tiny_model: Factory, family: str, name: str, dtype: torch.dtype
) -> None:
    model = tiny_model(family)
    linear = find_state_sites(model)[0].mixer.get_submodule(name)
    linear.weight = nn.Parameter(linear.weight.to(dtype), requires_grad=False)
    with pytest.raises(ModelError, match=rf"layers\.0\..*: {name}\.weight is quantised"):
        find_state_sites(model)


def test_bloom_that_bypasses_its_projection_is_refused(tiny_model: Factory) -> None:
    with pytest.raises(ModelError, match="slow_but_exact"):
        find_ffn_sites(tiny_model("bloom", pretraining_tp=2, slow_but_exact=True))


def test_layers_that_cannot_be_found_are_reported(tiny_model: Factory) -> None:
    model = tiny_model("llama")
    model.config.num_hidden_layers = 3
    with pytest.raises(ModelError, match="list of 3 decoder layers in LlamaForCausalLM, found 0"):
        find_ffn_sites(model)

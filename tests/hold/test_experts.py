"""Tokens are routed among the experts that are kept, by the router's own function."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from keepset.errors import ConfigError, ModelError
from keepset.hold.cut_experts import prune_experts
from keepset.hold.experts import hold_static, hold_windows, lead_in_scores
from keepset.rules.masks import top_mask
from keepset.rules.rule import Rule
from keepset.sites.experts import ExpertSite, find_expert_sites
from moe_models import SHAPES, E, K

Factory = Callable[..., PreTrainedModel]
IDS = torch.randint(4, 260, (2, 11), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def moe(tiny_model: Factory) -> Factory:
    """A tiny mixture of experts; what corrects the choice is not zero."""

    def build(family: str, **more: Any) -> PreTrainedModel:
        model = tiny_model(family, **{**SHAPES[family], **more})
        generator = torch.Generator().manual_seed(3)
        for name, buffer in model.named_buffers():
            if "bias" in name:
                buffer += 0.2 * torch.randn(buffer.shape, generator=generator)
        return model

    return build


def logits(
    model: PreTrainedModel, held: AbstractContextManager[Any] | None = None, ids: Tensor = IDS
) -> Tensor:
    with torch.no_grad():
        if held is None:
            return model(input_ids=ids, use_cache=False).logits
        with held:
            return model(input_ids=ids, use_cache=False).logits


def rule(window: Any, sparsity: float = 0.75, score: str = "magnitude", **more: Any) -> Rule:
    return Rule(score, sparsity, window, site="expert", **more)


def masks(model: PreTrainedModel, kept: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return {
        site.key: torch.rand(E, generator=generator).argsort() < kept
        for site in find_expert_sites(model)
    }


def same(values: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(values, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("family", SHAPES)
def test_a_static_set_is_a_router_without_the_other_rows(
    moe: Factory, tmp_path: Path, family: str
) -> None:
    for kept in (5, 1):  # more than a token is routed to, and fewer
        model = moe(family)
        sets = masks(model, kept)
        sites = find_expert_sites(model)
        held = logits(model, hold_static(model, sites, sets))
        assert not torch.allclose(held, logits(model), rtol=1e-2, atol=1e-2)
        if kept < 2 and family in ("deepseek_v3", "glm4_moe"):
            with pytest.raises(ModelError, match="two best experts"):
                prune_experts(model, sets)
            continue
        n_before = model.num_parameters()
        prune_experts(model, sets)
        assert model.num_parameters() < n_before
        assert {(site.n_units, site.top_k) for site in find_expert_sites(model)} == {
            (kept, min(K, kept))
        }
        same(logits(model), held)
        model.save_pretrained(tmp_path / f"{kept}")
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / f"{kept}").eval()
        assert plain.num_parameters() == model.num_parameters()
        same(logits(plain), held)


@pytest.mark.parametrize("family", SHAPES)
def test_keeping_as_many_as_a_token_is_routed_to_changes_nothing(moe: Factory, family: str) -> None:
    model = moe(family)
    sites = find_expert_sites(model)
    dense = logits(model)
    for sparsity in (0.0, 0.5, 0.75):
        assert torch.equal(logits(model, hold_windows(model, sites, rule(1, sparsity))), dense)
    one = logits(model, hold_windows(model, sites, rule(1, 0.875)))
    same(one[:, 0], dense[:, 0])  # a row's first token runs dense
    assert not torch.allclose(one[:, 1:], dense[:, 1:], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "granitemoe"])
def test_nor_does_it_where_experts_are_weighed_alike(moe: Factory, family: str) -> None:
    """A router takes any of equal experts; the lowest index would be another."""
    model = moe(family)
    sites = find_expert_sites(model)
    for site in sites:
        for parameter in site.router.parameters():
            parameter[E // 2 :] = parameter[: E // 2].clone()
            parameter[2] = parameter[1]
    dense = logits(model)
    for sparsity in (0.5, 0.75):
        assert torch.equal(logits(model, hold_windows(model, sites, rule(1, sparsity))), dense)
    other = logits(model, hold_windows(model, sites, rule(1, 0.5, "random")))
    assert not torch.allclose(other, dense, rtol=1e-3, atol=1e-3)


def test_fewer_at_a_token_are_the_first_that_the_router_chooses(moe: Factory) -> None:
    """As a model does that is told to route every token to one expert."""
    model = moe("mixtral")
    held = logits(model, hold_windows(model, find_expert_sites(model), rule(1, 0.875), bos=True))
    for site in find_expert_sites(model):
        site.router.top_k = 1
    fewer = logits(model)
    same(held[:, 1:], _first_dense(moe("mixtral"), fewer)[:, 1:])


def _first_dense(model: PreTrainedModel, _: Tensor) -> Tensor:
    """One expert for every token but a row's first."""
    rows = []
    for site in find_expert_sites(model):
        forward = site.router.forward

        def routed(x: Tensor, forward: Any = forward) -> Any:
            scores, weights, index = forward(x)
            first = torch.zeros(IDS.shape, dtype=torch.bool)
            first[:, 0] = True
            alone = torch.zeros_like(weights)
            alone[:, 0] = 1.0
            return scores, torch.where(first.view(-1, 1), weights, alone), index

        site.router.forward = routed  # type: ignore[method-assign]
        rows.append(site)
    return logits(model)


class Plain:
    """Windows written down as they are defined, for routers of softmax, top-k, and a norm."""

    def __init__(self, model: PreTrainedModel, width: int, kept: int, causal: bool) -> None:
        self.width, self.kept, self.causal = width, kept, causal
        for site in find_expert_sites(model):
            site.router.forward = self.forward_of(site)  # type: ignore[method-assign]

    def forward_of(self, site: ExpertSite) -> Any:
        forward = site.router.forward

        def routed(x: Tensor) -> Any:
            scores, weights, index = forward(x)
            p = (x.view(-1, x.shape[-1]) @ site.router.weight.T).softmax(-1).view(*IDS.shape, E)
            weights = weights.view(*IDS.shape, K).clone()
            index = index.view(*IDS.shape, K).clone()
            last = None
            for start in range(0, IDS.shape[1], self.width):
                window = p[:, start : start + self.width]
                chosen = top_mask(window.mean(dim=1), self.kept)
                use = last if self.causal and last is not None else chosen
                if self.causal and last is None:
                    use = top_mask(p[:, 0], self.kept)
                last = chosen
                for t in range(max(start, 1), start + window.shape[1]):
                    best = p[:, t].masked_fill(~use, 0.0).topk(K, dim=-1)
                    weights[:, t] = best.values / best.values.sum(-1, keepdim=True)
                    index[:, t] = best.indices
            return scores, weights.view(-1, K), index.view(-1, K)

        return routed


@pytest.mark.parametrize("choice", ["oracle", "causal"])
@pytest.mark.parametrize(("window", "width"), [(4, 4), ("sequence", 11)])
def test_windows_are_what_they_are_defined_to_be(
    moe: Factory, window: Any, width: int, choice: str
) -> None:
    model = moe("mixtral")
    sites = find_expert_sites(model)
    held = logits(model, hold_windows(model, sites, rule(window, 0.5, choice=choice)))
    assert not torch.allclose(held, logits(model), rtol=1e-3, atol=1e-3)
    other = moe("mixtral")
    Plain(other, width, 4, choice == "causal")
    same(held, logits(other))


def test_padding_does_not_choose(moe: Factory) -> None:
    model = moe("qwen3_moe")
    sites = find_expert_sites(model)
    ids = IDS.clone()
    ids[0, 7:] = 0
    with hold_windows(model, sites, rule("sequence", 0.5)) as action:
        action.valid = torch.ones_like(ids, dtype=torch.bool)
        action.valid[0, 7:] = False
        padded = logits(model, None, ids)[0, :7]
    alone = logits(model, hold_windows(model, sites, rule("sequence", 0.5)), ids[:1, :7])[0]
    same(padded, alone)


def test_a_lead_in_is_scored_on_its_last_tokens(moe: Factory) -> None:
    model = moe("mixtral")
    sites = find_expert_sites(model)
    rules = [rule(3, choice="causal"), rule(5, choice="causal")]
    scores = lead_in_scores(model, sites, rules, [3, 5], IDS)
    seen: list[Tensor] = []

    def watch(router: Any, args: Any) -> None:
        x = args[0].view(-1, args[0].shape[-1])
        seen.append((x @ router.weight.T).softmax(-1).view(*IDS.shape, E))

    with sites[0].router.register_forward_pre_hook(watch):
        logits(model)
    for width, means in zip((3, 5), scores, strict=True):
        torch.testing.assert_close(means["expert.000"], seen[0][:, -width:].mean(dim=1))


def test_cached_steps_agree_with_whole_passages(moe: Factory) -> None:
    model = moe("qwen3_moe")
    sites, sets = find_expert_sites(model), masks(model, 3)
    expected = logits(model, hold_static(model, sites, sets))
    rows, past = [], None
    with torch.no_grad(), hold_static(model, sites, sets):
        for part in (IDS[:, :6], *IDS[:, 6:].split(1, dim=1)):
            output = model(input_ids=part, past_key_values=past, use_cache=True)
            past = output.past_key_values
            rows.append(output.logits)
    same(torch.cat(rows, dim=1), expected)


def test_layers_without_experts_are_no_sites(moe: Factory) -> None:
    assert [site.key for site in find_expert_sites(moe("deepseek_v3"))] == ["expert.001"]


def test_what_cannot_be_held_is_refused_by_name(moe: Factory, tiny_model: Factory) -> None:
    groups = moe("deepseek_v3", n_group=4, topk_group=2)
    (site,) = find_expert_sites(groups)
    with (
        pytest.raises(ModelError, match=r"layers\.1\.mlp\.gate: .*within 4 groups"),
        hold_static(groups, [site], masks(groups, 4)),
    ):
        pass
    with pytest.raises(ModelError, match="within 4 groups"):
        prune_experts(groups, masks(groups, 4))
    with pytest.raises(ModelError, match="no routed experts"):
        prune_experts(tiny_model("llama"), {})
    model = moe("qwen3_moe")
    for wrong, message in (
        ({}, "needed, got none"),
        ({**masks(model, 4), "expert.001": torch.arange(E) < 3}, "same number of experts"),
        ({key: mask[:4] for key, mask in masks(model, 4).items()}, r"shape \(8,\)"),
    ):
        with pytest.raises(ModelError, match=message):
            prune_experts(model, wrong)
    with (
        pytest.raises(ConfigError, match="'impact' of experts cannot be taken per token"),
        hold_windows(model, find_expert_sites(model), rule(1, score="impact")),
    ):
        pass


def test_everything_is_put_back(moe: Factory) -> None:
    model = moe("mixtral")
    sites = find_expert_sites(model)
    before = logits(model)
    with pytest.raises(RuntimeError, match="no"), hold_static(model, sites, masks(model, 3)):
        raise RuntimeError("no")
    assert torch.equal(logits(model), before)
    assert all("forward" not in site.router.__dict__ for site in sites)

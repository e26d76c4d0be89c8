"""Find the routed experts of a causal language model.

In transformers 5 a router is a module that chooses `top_k` of `num_experts` for every token, beside
the module that holds their weights, `experts`. Routers are found by what they are. Where one does
not choose by the largest of its scores alone, the site says why no set of experts can be held.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from keepset.sites import AnySite


@dataclass(frozen=True, eq=False)
class ExpertSite(AnySite):
    """The routed experts of one layer; a unit is an expert.

    Attributes:
        router: what chooses experts: returns logits, weights and indices of the chosen ones.
        block: what holds the router and `experts`, and shared experts that every token passes.
        n_units: number of routed experts.
        top_k: experts that a token is routed to.
        refusal: why no set of these experts can be held; None where one can.
    """

    router: nn.Module
    block: nn.Module
    n_units: int
    top_k: int
    refusal: str | None


def find_expert_sites(model: PreTrainedModel) -> list[ExpertSite]:
    """The routed experts of `model`, in order of execution; empty where it has none.

    Args:
        model: a causal language model; its weights are not read.
    """
    modules = dict(model.named_modules())
    sites = []
    for name, router in modules.items():
        parent = name.rpartition(".")[0]
        layer = re.search(r"\.(\d+)\.", f"{name}.")
        if layer is None or not _routes(router) or not hasattr(modules[parent], "experts"):
            continue
        chosen: Any = router
        sites.append(
            ExpertSite(
                kind="expert",
                layer=int(layer[1]),
                name=name,
                router=router,
                block=modules[parent],
                n_units=int(chosen.num_experts),
                top_k=int(chosen.top_k),
                refusal=_refusal(router),
            )
        )
    return sites


def _routes(module: nn.Module) -> bool:
    """Whether it chooses `top_k` of `num_experts`, and does not hold the experts itself."""
    sizes = (getattr(module, name, None) for name in ("num_experts", "top_k"))
    return all(isinstance(size, int) for size in sizes) and not hasattr(module, "experts")


def _refusal(router: nn.Module) -> str | None:
    if hasattr(router, "num_router_classes"):
        return "the router may choose no expert for a token"
    groups = max(int(getattr(router, name, 1) or 1) for name in ("num_group", "n_group"))
    if groups > 1:
        return f"the router chooses within {groups} groups of experts"
    code = getattr(type(router).forward, "__code__", None)
    if code is None or "topk" not in code.co_names:
        return "the router does not choose by the largest of its scores"
    return None

"""Cut routed experts out of a model's weights: their tensors, and their rows of the router.

What is left loads in plain transformers, since the configuration has one number of experts for all
layers: so every layer keeps as many.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from keepset.errors import ModelError
from keepset.rules.masks import Masks
from keepset.sites import is_plain
from keepset.sites.experts import ExpertSite, find_expert_sites

NUMBERS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
"""Names of the number of routed experts, in configurations and modules."""
CHOSEN = ("top_k", "num_experts_per_tok", "num_experts_per_token", "moe_k", "moe_topk")
"""Names of the number of experts that a token is routed to."""


def prune_experts(model: PreTrainedModel, masks: Masks) -> None:
    """Cut the experts that are not kept out of the weights, in place.

    Where fewer are left than a token is routed to, it is routed to all of them.

    Args:
        model: A model with routed experts.
        masks: Site key -> (n_experts,) bool; every layer keeps as many.

    Raises:
        ModelError: a site has no mask, or one of another shape; layers keep unlike numbers; or the
            experts of a layer cannot be cut: their router does more than choose the largest scores,
            or they are stored in a number format of their own.

    Example:
        >>> import torch
        >>> from keepset import find_sites, load, prune_experts
        >>> model, _ = load("specimens/moe", dtype="float32")
        >>> masks = {site.key: torch.arange(8) < 6 for site in find_sites(model, ["expert"])}
        >>> prune_experts(model, masks)  # keeps the first six of the eight experts of every layer
        >>> find_sites(model, ["expert"])[0].n_units
        6
    """
    sites = find_expert_sites(model)
    if not sites:
        raise ModelError(f"{model.config.model_type}: there are no routed experts to cut")
    for site in sites:
        _check(site, masks.get(site.key))
    counts = {site.key: int(masks[site.key].sum()) for site in sites}
    if len(set(counts.values())) > 1 or min(counts.values()) < 1:
        raise ModelError(
            f"every layer must keep the same number of experts, at least one; got {counts}"
        )
    n_before, n_left = sites[0].n_units, next(iter(counts.values()))
    if n_left < 2 and any(hasattr(site.router, "num_group") for site in sites):
        raise ModelError(
            f"{sites[0].name}: this router ranks groups by their two best experts; keep two at"
            " least"
        )
    _check_smaller(model, n_before, n_left)
    for site in sites:
        _slice(site, masks[site.key].nonzero()[:, 0])
    _configure(model.config, n_before, n_left)


def _configure(config: PreTrainedConfig, n_before: int, n_left: int) -> None:
    """Put the number of experts that are left into a configuration."""
    config = config.get_text_config()
    for name in NUMBERS:
        if getattr(config, name, None) == n_before:
            setattr(config, name, n_left)
    for name in CHOSEN:
        if isinstance(chosen := getattr(config, name, None), int):
            setattr(config, name, min(chosen, n_left))


def _check_smaller(model: PreTrainedModel, n_before: int, n_left: int) -> None:
    """Refuse a number of experts for which transformers builds other modules.

    Raises:
        ModelError: it does, as Jamba for one expert, whose FFN it makes dense.
    """
    config = copy.deepcopy(model.config)
    _configure(config, n_before, n_left)
    with torch.device("meta"):
        smaller = type(model)(config)
    if others := sorted(smaller.state_dict().keys() - model.state_dict().keys()):
        raise ModelError(
            f"{config.model_type}: with {n_left} of {n_before} experts transformers builds another"
            f" model, which has {others[0]}; keep more experts, or hold the rule on the running"
            " model"
        )


def _check(site: ExpertSite, mask: Tensor | None) -> None:
    if site.refusal is not None:
        raise ModelError(f"{site.name}: {site.refusal}; its experts cannot be cut")
    if mask is None or mask.shape != (site.n_units,):
        shape = "none" if mask is None else tuple(mask.shape)
        raise ModelError(f"{site.name}: a mask of shape {(site.n_units,)} is needed, got {shape}")
    for name, tensor in site.block.named_parameters():
        if not is_plain(tensor):
            raise ModelError(
                f"{site.name}: {name} is stored as {tensor.dtype}; load the model in float32,"
                " bfloat16 or float16 (dequantised) to cut its experts"
            )


def _slice(site: ExpertSite, kept: Tensor) -> None:
    """Leave the experts `kept` (k,) int64."""
    block: Any = site.block
    if isinstance(block.experts, nn.ModuleList):
        block.experts = nn.ModuleList([block.experts[int(one)] for one in kept])
    cut = 0
    for module in _modules(site):
        for name, tensor in _tensors(module):
            if site.n_units not in tensor.shape:
                continue
            dim = tensor.shape.index(site.n_units)
            part = tensor.detach().index_select(dim, kept.to(tensor.device)).clone()
            if isinstance(tensor, nn.Parameter):
                part = nn.Parameter(part, requires_grad=False)
            setattr(module, name, part)
            cut += 1
        for name in (*NUMBERS, "out_features"):
            if getattr(module, name, None) == site.n_units:
                setattr(module, name, len(kept))
        for name in CHOSEN:
            if isinstance(chosen := getattr(module, name, None), int):
                setattr(module, name, min(chosen, len(kept)))
    if not cut:
        raise ModelError(f"{site.name}: no tensor has a row for each of {site.n_units} experts")


def _modules(site: ExpertSite) -> Iterator[nn.Module]:
    """The router with all of its parts, what holds the experts, and the block around them."""
    block: Any = site.block
    yield from site.router.modules()
    if not isinstance(block.experts, nn.ModuleList):
        yield block.experts
    yield block


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The module's own parameters and buffers, not those of its parts."""
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    return list(own)

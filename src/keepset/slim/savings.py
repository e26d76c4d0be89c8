"""What a recipe saves: bytes of weights that a decoded token reads, of states, of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import nn

from keepset.rules.recipe import Recipe
from keepset.rules.rule import Rule
from keepset.rules.scores import NEURON_SCORES
from keepset.sites.experts import ExpertSite
from keepset.sites.ffn import Site
from keepset.sites.state import StateSite

Save = Literal["speed", "memory", "size"]
NAMES: dict[Save, str] = {
    "speed": "bytes of weights that a decoded token reads",
    "memory": "bytes of recurrent states, per sequence",
    "size": "bytes of the checkpoint's weights",
}


def total(model: Any, sites: Iterable[Any], save: Save) -> int:
    """What the dense model has of what is to be saved, in bytes."""
    if save == "memory":
        return sum(state_bytes(site) for site in sites if isinstance(site, StateSite))
    weights = {id(p): p.nbytes for p in model.parameters()}
    if save == "size":
        return sum(weights.values())
    # Of a table of embeddings a token reads one row, unless the output layer reads it all.
    tables = {id(model.get_input_embeddings().weight)} - {id(model.get_output_embeddings().weight)}
    return sum(size for owner, size in weights.items() if owner not in tables)


def state_bytes(site: StateSite) -> int:
    """The state of one sequence, in float32."""
    return 4 * site.n_heads * site.head_dim * site.n_state


def site_bytes(site: Site, score: str = "magnitude") -> int:
    """The weights that belong to the units of a site: what is saved if all are left out.

    Those of the maps that read them; where the gate alone chooses, also those of the up projection.
    """
    size = sum(columns.numel() * columns.element_size() for columns in site.columns())
    if NEURON_SCORES[score].reads_gate:
        weights = [_weight(part.module) for part in site.up]
        # Gate and up are as large, side by side in one module or in two.
        size += sum(weight.numel() * weight.element_size() for weight in weights) // 2
    return size


def _weight(module: nn.Module) -> Any:
    return module.weight


def saved(sites: Mapping[str, Any], recipe: Recipe, shares: Mapping[str, float], save: Save) -> int:
    """The bytes that a recipe saves.

    Args:
        sites: Site key -> site.
        recipe: The recipe.
        shares: Site key -> the share left out by a threshold, as measured; the rule's where it is
            not among them.
        save: What is saved.
    """
    parts = (
        _of_rule(sites[key], rule, shares.get(key, rule.sparsity), save)
        for key, rule in recipe.rules.items()
    )
    return round(sum(parts))


def _of_rule(site: Any, rule: Rule, share: float, save: Save) -> float:
    if isinstance(site, StateSite):
        if save == "memory":
            return share * state_bytes(site)
        weights = (site.projection("B"), site.projection("C"))
        return share * sum(w.numel() * w.element_size() for w in weights)
    if isinstance(site, ExpertSite):
        experts: Any = site.block.experts
        size = sum(p.nbytes for p in experts.parameters())
        # A token reads as many experts as before.
        return share * size if save == "size" else 0.0
    return share * site_bytes(site, rule.score) if save == "speed" else 0.0

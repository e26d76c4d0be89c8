"""Hold a recipe on a model that reads whole passages: every site's own rule, all together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from keepset import kinds
from keepset.errors import ModelError
from keepset.hold.windows import Windowed
from keepset.kernels.selection import Selection
from keepset.rules.recipe import Recipe
from keepset.sites import AnySite


class Actions:
    """The actions of several rules, as one: what is said of the batch is said to all."""

    def __init__(self, actions: Sequence[Windowed]) -> None:
        """Keep `actions` together."""
        self._actions = actions

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "valid":
            for action in self._actions:
                action.valid = value
        else:
            super().__setattr__(name, value)


@contextmanager
def hold_recipe(
    model: nn.Module,
    sites: Sequence[Any],
    recipe: Recipe,
    selection: Selection | None = None,
    *,
    bos: bool = False,
    noise: int | None = None,
) -> Iterator[Actions]:
    """Hold every rule of a recipe, from each row's second token as rules do (see `SiteKind`).

    Args:
        model: The model.
        sites: Its sites; all that the recipe names are among them.
        recipe: The recipe.
        selection: Which kernels may run; plain torch if left out.
        bos: Whether rows start with a BOS token.
        noise: A seed of `keepset.hold.inputs.Windows`, of its dynamic rules.

    Raises:
        ModelError: the recipe names a site that the model does not have, or keeps units that the
            site does not have.
    """
    by_key = {site.key: site for site in sites}
    masks = kept_masks(by_key, recipe)
    actions = []
    with ExitStack() as stack:
        for rule, keys in recipe.groups().items():
            kind, held = kinds.of(rule.site), [by_key[key] for key in keys]
            if rule.method == "static":
                stack.enter_context(kind.hold_static(model, held, masks, selection))
            elif rule.sparsity or any(key in recipe.thresholds for key in keys):
                options: dict[str, Any] = {"bos": bos, "selection": selection}
                if noise is not None:
                    options["noise"] = noise
                thresholds = {key: recipe.thresholds.get(key) for key in keys}
                if least := {key: t for key, t in thresholds.items() if t is not None}:
                    options["thresholds"] = least
                if centres := {key: recipe.centres[key] for key in keys if key in recipe.centres}:
                    options["centres"] = centres
                actions.append(stack.enter_context(kind.hold_windows(model, held, rule, **options)))
        yield Actions(actions)


def kept_masks(sites: Mapping[str, Any], recipe: Recipe) -> dict[str, Tensor]:
    """Site key -> what the static rules of a recipe keep, as masks of the site's units.

    Args:
        sites: Site key -> site, of the model.
        recipe: The recipe.

    Raises:
        ModelError: see `hold_recipe`.
    """
    if missing := [key for key in recipe.rules if key not in sites]:
        raise ModelError(
            f"the recipe names {missing[0]} ({len(missing)} such), which the model does not have;"
            f" it has {', '.join(list(sites)[:4])}, ..."
        )
    return {key: _mask(sites[key], kept) for key, kept in recipe.kept.items()}


def all_kept(site: AnySite) -> Tensor:
    """The mask of a site that keeps every unit, of the shape of `kept_masks`."""
    return ~_mask(site, [[]] * getattr(site, "n_groups", 0))


def _mask(site: AnySite, kept: Any) -> Tensor:
    n_groups, n_state = getattr(site, "n_groups", None), getattr(site, "n_state", None)
    if n_groups is None or n_state is None:
        mask = torch.zeros(site.n_units, dtype=torch.bool)  # type: ignore[attr-defined]
        rows = [(mask, kept)]
    else:
        mask = torch.zeros(n_groups, n_state, dtype=torch.bool)
        if len(kept) != n_groups:
            raise ModelError(
                f"{site.key}: the recipe keeps units of {len(kept)} groups, not {n_groups}"
            )
        rows = list(zip(mask, kept, strict=True))
    for row, units in rows:
        if not isinstance(units, Sequence):
            raise ModelError(f"{site.key}: the recipe must list the kept units of each group")
        if not all(isinstance(unit, int) and 0 <= unit < len(row) for unit in units):
            raise ModelError(f"{site.key}: the recipe keeps units beyond its {len(row)}")
        if len(set(units)) < len(units):
            raise ModelError(f"{site.key}: the recipe keeps a unit twice")
        row[torch.tensor(units, dtype=torch.long)] = True
    return mask

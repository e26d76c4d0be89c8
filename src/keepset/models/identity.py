"""Which weights a model has: what a recipe belongs to."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import torch

from keepset.errors import ModelError
from keepset.rules.recipe import Recipe

_SAMPLE = 4096
"""Numbers of each parameter that count: evenly spaced, so that a change of the weights shows."""


def weights_digest(model: Any) -> str:
    """A digest of a model's weights: of names, shapes, and evenly spaced numbers of each.

    Numbers count as bfloat16, so that a checkpoint has one digest in every dtype that it is
    loaded in.

    Example:
        >>> from keepset import load
        >>> from keepset.models import weights_digest
        >>> a, b = (load("specimens/relu", dtype=dtype)[0] for dtype in ("float32", "bfloat16"))
        >>> weights_digest(a) == weights_digest(b)
        True
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        values = parameter.detach().flatten()
        places = torch.linspace(0, len(values) - 1, min(len(values), _SAMPLE), dtype=torch.float64)
        sample = values[places.long().to(values.device)].to(torch.bfloat16).cpu()
        digest.update(f"{name} {tuple(parameter.shape)}".encode())
        digest.update(sample.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def owner_of(model: Any, name: str, revision: str | None = None) -> dict[str, Any]:
    """What a recipe of `model` says that it belongs to: `Recipe.model`.

    Args:
        model: The model, whole.
        name: What readers call it.
        revision: Of the hub's repository, where it is from there.
    """
    owner = {"name": name, "model_type": model.config.model_type, "weights": weights_digest(model)}
    return owner if revision is None else {**owner, "revision": revision}


def still_to_do(model: Any, recipe: Recipe) -> Recipe:
    """What of a recipe is to be held on a model: all of it, or what was not cut for good.

    Raises:
        ModelError: the recipe is of another model, or of other weights; the message names both.
    """
    owner = recipe.model
    if not owner.get("weights"):
        return recipe
    digest = weights_digest(model)
    if digest == recipe.cut:
        left = recipe.of_method("dynamic")
        return replace(recipe, rules=left, kept={}, cut=None)
    if digest != owner["weights"]:
        mine = model.config.model_type
        other = owner.get("model_type") not in (None, mine)
        what = f"a {owner.get('model_type')} model" if other else "other weights of this kind"
        raise ModelError(
            f"the recipe belongs to {owner.get('name') or 'another model'}"
            f" ({what}, digest {owner['weights'][:12]}), and not to this {mine} model (digest"
            f" {digest[:12]}): load the checkpoint, and the revision, that it was made for, or make"
            " a new one with `keepset slim`"
        )
    return recipe

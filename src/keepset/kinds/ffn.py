"""FFN neurons: the inputs of down projections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import PreTrainedModel

from keepset.calibrate.sets import rank_file as load_sets  # noqa: F401
from keepset.errors import ModelError
from keepset.hold.inputs import hold_windows, lead_in_scores  # noqa: F401
from keepset.hold.static import hold_static  # noqa: F401
from keepset.rules.masks import Masks
from keepset.sites.ffn import find_ffn_sites as find  # noqa: F401


def sets_owner(owner: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """An activation cache depends on whether gradients were taken (`gradients`)."""
    return {**owner, "gradients": settings["gradients"]}


def cut(model: PreTrainedModel, masks: Masks) -> None:
    """Refuse: a checkpoint has one width for all its FFNs.

    Raises:
        ModelError: always.
    """
    del masks
    raise ModelError(
        f"{model.config.model_type}: neurons cannot be cut out of a checkpoint; a static rule runs"
        " without their weights, and the file keeps them"
    )

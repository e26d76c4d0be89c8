"""Inputs of the linear maps of decoder layers, other than the down projections' (`kinds.ffn`)."""

from __future__ import annotations

from functools import partial

from transformers import PreTrainedModel

from keepset.calibrate.sets import rank_file
from keepset.errors import ModelError
from keepset.hold.inputs import hold_windows, lead_in_scores  # noqa: F401
from keepset.hold.static import hold_static  # noqa: F401
from keepset.kernels.mixers import mixer_kernels
from keepset.kernels.selection import Selection
from keepset.kinds.ffn import sets_owner  # noqa: F401
from keepset.rules.masks import Masks
from keepset.sites.inputs import InputSite, find_input_sites

load_sets = partial(rank_file, site="input")


def find(model: PreTrainedModel) -> list[InputSite]:
    """See `find_input_sites`; mixers run in torch, whose functions run on every device."""
    with mixer_kernels(model, Selection.of("torch")):
        return find_input_sites(model)


def cut(model: PreTrainedModel, masks: Masks) -> None:
    """Refuse: what one map does not read, others of its layer do.

    Raises:
        ModelError: always.
    """
    del masks
    raise ModelError(
        f"{model.config.model_type}: inputs of linear maps cannot be cut out of a checkpoint; a"
        " static rule leaves them out while the model runs"
    )

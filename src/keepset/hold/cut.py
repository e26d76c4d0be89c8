"""Cut state channels out of a model's weights, and write the smaller checkpoint.

A Mamba-2 mixer makes B and C by rows of its input projection and channels of its convolution, and
the state has as many columns as they have. Cutting those rows and channels leaves a mixer with a
smaller state that computes what the masked one does, in prefill and step by step.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from keepset import models
from keepset.errors import ModelError
from keepset.hold import memories
from keepset.models import checkpoint
from keepset.models.checkpoint import PER_LAYER
from keepset.rules.masks import Masks
from keepset.sites.families import FAMILIES, no_sites
from keepset.sites.state import StateSite, find_state_sites


def prune_states(model: PreTrainedModel, masks: Masks) -> None:
    """Cut the channels that are not kept out of the weights, in place.

    Args:
        model: A model with Mamba-2 mixers.
        masks: Site key -> (n_groups, n_state) bool; every group of a layer keeps as many.

    Raises:
        ModelError: there are no states, a site has no mask, a mask has another shape, groups keep
            unlike numbers, or transformers has no smaller model of this family. The model is as
            before.

    Example:
        >>> import torch
        >>> from keepset import find_sites, load, prune_states
        >>> model, _ = load("specimens/mamba2", dtype="float32")
        >>> sites = find_sites(model, ["state"])
        >>> masks = {site.key: torch.arange(64)[None] < 32 for site in sites}
        >>> prune_states(model, masks)  # keeps the first half of the 64 channels of every layer
        >>> find_sites(model, ["state"])[0].n_state
        32
    """
    sites = find_state_sites(model)
    if not sites:
        raise ModelError(f"{model.config.model_type}: {no_sites(model, 'state')} to cut")
    for site in sites:
        _check(site, masks.get(site.key))
    key = _size_key(model, sites[0], masks)
    for site in sites:
        _cut(site, masks)
    _configure(model, key, find_state_sites(model))


def _cut(site: StateSite, masks: Masks) -> None:
    mask = masks[site.key]
    memories.of(site).cut(site, mask.flatten().nonzero()[:, 0], int(mask[0].sum()))


def _check(site: StateSite, mask: Tensor | None) -> None:
    if mask is None or mask.shape != (site.n_groups, site.n_state):
        shape = "none" if mask is None else tuple(mask.shape)
        raise ModelError(
            f"{site.name}: a mask of shape {(site.n_groups, site.n_state)} is needed, got {shape}"
        )
    counts = mask.sum(dim=1)
    if int(counts.min()) != int(counts.max()) or int(counts.min()) < 1:
        raise ModelError(
            f"{site.name}: every group must keep the same number of channels, at least one;"
            f" got {counts.tolist()}"
        )


def _size_key(model: PreTrainedModel, site: StateSite, masks: Masks) -> str:
    """The key of the configuration that holds the state size.

    Raises:
        ModelError: there is none, and why, where the kind of memory knows.
    """
    name = model.config.get_text_config().model_type
    family = FAMILIES.get(name)
    if family is None or family.state_size_key is None:
        _cut(replace(site, mixer=copy.deepcopy(site.mixer)), masks)
        raise ModelError(
            f"{name}: which configuration key holds the state size is not known; name"
            " it as state_size_key of the family's record in keepset/sites/families.py"
        )
    return family.state_size_key


def _configure(model: PreTrainedModel, key: str, sites: Sequence[StateSite]) -> None:
    config = model.config.get_text_config()
    sizes = {site.layer: site.n_state for site in sites}
    setattr(config, key, max(sizes.values()))
    if len(set(sizes.values())) > 1:
        setattr(config, PER_LAYER, {str(layer): n for layer, n in sizes.items()})
    elif hasattr(config, PER_LAYER):  # of layers that were cut to unlike sizes before
        delattr(config, PER_LAYER)


def save_pruned(model: PreTrainedModel, tokenizer: Any, folder: str | Path) -> None:
    """Write a pruned model: config, weights and tokenizer, whole or not at all.

    One state size for all layers loads in plain transformers; sizes that differ load through
    `load_pruned`.

    Example:
        >>> import tempfile
        >>> from keepset import load, load_pruned, save_pruned
        >>> model, tokenizer = load("specimens/mamba2", dtype="float32")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_pruned(model, tokenizer, f"{folder}/small")
        ...     load_pruned(f"{folder}/small").num_parameters() == model.num_parameters()
        True
    """
    # `_read_layers` knows tensors by the names of the model's modules alone.
    alike = not hasattr(model.config.get_text_config(), PER_LAYER)
    models.save(model, tokenizer, folder, save_original_format=alike)


def load_pruned(
    folder: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> PreTrainedModel:
    """Load what `save_pruned` wrote, whether or not the layers' state sizes differ.

    Raises:
        ModelError: the folder is no checkpoint, or its weights are not exactly those of its
            configuration.

    Example:
        >>> from keepset import load_pruned
        >>> load_pruned("specimens/mamba2").config.state_size  # a dense checkpoint loads too
        64
    """
    folder = Path(folder)
    content = checkpoint.check(str(folder), folder, with_tokenizer=False)
    with checkpoint.explained(f"{folder}: cannot load the model"):
        if PER_LAYER in content:
            model, report = _read_layers(folder, content[PER_LAYER], dtype)
        else:
            model, report = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # the report names them
                output_loading_info=True,
            )
    checkpoint.check_complete(str(folder), model, report)
    checkpoint.check_stored(str(folder), folder, model)
    return model.to(device).eval().requires_grad_(False)


def _read_layers(
    folder: Path, state_sizes: Mapping[str, int], dtype: torch.dtype
) -> tuple[PreTrainedModel, dict[str, list[str]]]:
    """A model whose layers have states of different sizes, and the keys that do not fit it."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    sizes = {int(layer): n for layer, n in state_sizes.items()}
    for site in find_state_sites(model):
        if site.layer not in sizes:
            raise ModelError(f"{folder}: {PER_LAYER} of config.json has no layer {site.layer}")
        if not 1 <= sizes[site.layer] <= site.n_state:
            raise ModelError(
                f"{folder}: {PER_LAYER} of config.json gives layer {site.layer}"
                f" {sizes[site.layer]} channels, of {site.n_state} that the configuration has"
            )
        first = torch.zeros(site.n_groups, site.n_state, dtype=torch.bool)
        first[:, : sizes[site.layer]] = True
        memories.of(site).cut(site, first.flatten().nonzero()[:, 0], sizes[site.layer])
    state: dict[str, Tensor] = {}
    for file in checkpoint.weight_files(str(folder), folder):
        state |= load_file(file)
    loaded = model.load_state_dict(state, strict=False)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    _check_tied(folder, state, parameters)
    read = {id(parameters[name]) for name in state if name in parameters}
    missing = [name for name in loaded.missing_keys if id(parameters.get(name)) not in read]
    return model, {"missing_keys": missing, "unexpected_keys": loaded.unexpected_keys}


def _check_tied(
    folder: Path, state: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]
) -> None:
    """Refuse different values for weights that are one in the model: one would win unseen."""
    for name, tensor in state.items():
        if name in parameters and not torch.equal(parameters[name], tensor.to(parameters[name])):
            raise ModelError(
                f"{folder}: config.json ties {name} to another weight, and the two differ; set"
                " tie_word_embeddings: false there"
            )

"""The weights of kept units alone, and what stands in for a module; always put back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from keepset.errors import ModelError
from keepset.rules.masks import Masks
from keepset.sites.ffn import Projection, Site

Forward = Callable[[Tensor], Tensor]

Slices = Sequence[tuple[Any, Mapping[str, Tensor]]]
"""Modules, each with the parameters of kept units alone."""


def cut_weights(sites: Sequence[Site], masks: Masks) -> Slices:
    """The weights of the kept units of every site, copied together.

    Raises:
        ModelError: a site's projections cannot be sliced (see `sliceable`).
    """
    slices: list[tuple[Any, Mapping[str, Tensor]]] = []
    for site in sites:
        if not sliceable(site):
            raise ModelError(f"{site.name}: the units of this site cannot be sliced")
        units = masks[site.key].nonzero()[:, 0].to(site.down_weight().device)
        if len(units) == site.n_units:
            continue
        slices += [(part.module, slice_up(part, units)) for part in site.up]
        slices.append((site.down, {"weight": slice_down(site, units)}))
    return slices


@contextmanager
def in_place(slices: Slices) -> Iterator[None]:
    """Let the model run with parts of its weights; the dense ones are put back on exit."""
    with ExitStack() as stack:
        for module, tensors in slices:
            stack.enter_context(swapped(module, tensors))
        yield


def sliceable(site: Site) -> bool:
    """Whether a site's units can be cut out of the weights without touching another site."""
    return bool(site.up) and site.n_calls == 1


def slice_up(projection: Projection, units: Tensor) -> dict[str, Tensor]:
    """The weight, and the bias if any, of `units` alone, in the module's own layout."""
    module: Any = projection.module
    rows = torch.cat([units + offset for offset in projection.offsets])
    out_dim = 0 if isinstance(module, nn.Linear) else 1
    parts = {"weight": module.weight.index_select(out_dim, rows)}
    if getattr(module, "bias", None) is not None:
        parts["bias"] = module.bias.index_select(0, rows)
    return parts


def slice_down(site: Site, units: Tensor) -> Tensor:
    """The weight of `units` alone of the down projection, in the module's own layout."""
    module: Any = site.down
    return module.weight.index_select(1 if isinstance(module, nn.Linear) else 0, units)


@contextmanager
def swapped(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Replace parameters of `module` by `tensors`; sizes that forward reads follow."""
    dense = {name: getattr(module, name) for name in tensors}
    width = getattr(module, "nf", None)
    try:
        _replace(module, tensors)
        yield
    finally:
        for name, parameter in dense.items():
            setattr(module, name, parameter)
        if width is not None:
            module.nf = width


def twin(module: nn.Module, tensors: Mapping[str, Tensor]) -> Any:
    """A second module with `tensors` for parameters; it shares everything else with the first."""
    other: Any = copy.copy(module)
    other._parameters = dict(module._parameters)
    other.__dict__.pop("forward", None)
    _replace(other, tensors)
    return other


def _replace(module: Any, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        setattr(module, name, nn.Parameter(tensor, requires_grad=False))
    if hasattr(module, "nf") and "bias" in tensors:
        # Conv1D shapes its output by `nf`, not by its weight.
        module.nf = tensors["bias"].shape[0]


@contextmanager
def standing_forward(module: nn.Module, forward: Forward) -> Iterator[None]:
    """Let `forward` stand in for a module's own; its hooks run as before."""
    before = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before

"""Find the inputs of linear maps: what a decoder layer projects, besides the neurons of its FFN.

Maps that read one tensor are one site: q, k and v of an attention, gate and up of an FFN, the
experts of a layer. Which maps those are is seen by running the model on a few tokens, so that no
family needs a record: names differ, and a map may read what its name does not say.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from keepset.errors import ModelError
from keepset.sites import is_plain
from keepset.sites.expert_neurons import ExpertNeurons, holds_experts
from keepset.sites.ffn import Site, decoder_layers, find_ffn_sites

_ROWS, _TOKENS = 2, 3
"""The passages that a model is traced on: unequal, so that the order of axes shows."""


@dataclass(frozen=True, eq=False)
class InputSite(Site):
    """The inputs of the linear maps that read one tensor; a unit is an entry of it.

    Attributes:
        down: the first of these maps, in order of execution; or what holds the experts of a layer.
        others: the further ones, each with its call within one forward pass.
    """

    others: tuple[tuple[nn.Module, int], ...] = ()

    @property
    def readers(self) -> tuple[tuple[nn.Module, int], ...]:
        """All of the maps, in order of execution."""
        return ((self.down, self.call), *self.others)

    def columns(self) -> list[Tensor]:
        """The columns of every unit, map by map: (n_units, outputs); views, but of experts."""
        return [_columns(module) for module, _ in self.readers]

    def down_weight(self) -> Tensor:
        """The columns of every unit in all maps, side by side: a copy (n_units, outputs)."""
        return torch.cat(self.columns(), dim=1)


def _columns(module: Any) -> Tensor:
    if holds_experts(module):
        # (experts, outputs, inputs), or with the last two the other way round.
        weight = _experts_weight(module)
        weight = weight if module.is_transposed else weight.transpose(1, 2)
        return weight.transpose(0, 1).flatten(1)
    return module.weight if isinstance(module, Conv1D) else module.weight.T


def _experts_weight(module: Any) -> Tensor:
    weight: Tensor = module.gate_up_proj if module.has_gate else module.up_proj
    return weight


@dataclass
class _Group:
    """Maps that read one tensor within one layer."""

    layer: int
    values: Tensor
    readers: list[tuple[nn.Module, int]] = field(default_factory=list)

    def reads(self, layer: int, values: Tensor) -> bool:
        """Whether a tensor holds the very same numbers, in any shape."""
        mine, other = self.values.untyped_storage(), values.untyped_storage()
        return (
            layer == self.layer
            and mine._cdata == other._cdata
            and values.storage_offset() == self.values.storage_offset()
            and values.numel() == self.values.numel()
            and values.shape[-1] == self.values.shape[-1]
        )


def find_input_sites(model: PreTrainedModel) -> list[InputSite]:
    """The sites of the inputs of a model's linear maps, in order of execution.

    All maps of the decoder layers count but three kinds: the down projections, whose inputs are the
    neurons of the kind `ffn`; routers, which choose and compute nothing; and maps that do not read
    one row per token.

    Args:
        model: A causal language model with weights; it runs on a few tokens.

    Raises:
        ModelError: the model is on the meta device, cannot be run, or its layers are not known.
    """
    prefix, layers = decoder_layers(model)
    names = {module: name for name, module in model.named_modules()}
    neurons = find_ffn_sites(model)
    downs = {site.down for site in neurons if not isinstance(site, ExpertNeurons)}
    maps = [m for m in _maps(layers) if m not in downs]
    groups, n_calls = _trace(model, layers, maps)
    sites = []
    for group in groups:
        (first, call), *others = group.readers
        layer = group.layer
        peers = [other for other in groups if other.layer == layer]
        path = names[first]
        tail = path.rpartition(".")[2]
        tails = [names[other.readers[0][0]].rpartition(".")[2] for other in peers]
        # A path may begin with another layer's name: depths can share a module.
        within = path.removeprefix(f"{prefix}.").partition(".")[2]
        sites.append(
            InputSite(
                kind="input",
                layer=layer,
                name=path,
                down=first,
                n_units=group.values.shape[-1],
                call=call,
                n_calls=n_calls[first],
                activation="none",
                gated=False,
                up=(),
                part=tail if tails.count(tail) == 1 else within,
                others=tuple(others),
            )
        )
    return sites


def _maps(layers: nn.ModuleList) -> Iterator[nn.Module]:
    """The linear maps of the layers, and what holds experts, but no routers."""
    inside: set[nn.Module] = set()
    for module in dict.fromkeys(part for layer in layers for part in layer.modules()):
        if module in inside:
            continue
        if holds_experts(module) and hasattr(module, "is_transposed"):
            inside |= set(module.modules())
            yield module
        elif hasattr(module, "experts"):
            # What stands beside experts chooses among them, or weighs what every token passes.
            inside |= {child for child in module.children() if isinstance(child, nn.Linear)}
        elif isinstance(module, nn.Linear | Conv1D) and is_plain(module.weight):
            yield module


def _trace(
    model: PreTrainedModel, layers: nn.ModuleList, maps: Sequence[nn.Module]
) -> tuple[list[_Group], Counter[nn.Module]]:
    """Which maps read the same tensor, in order; and how often each is called in a pass."""
    groups: list[_Group] = []
    calls: Counter[nn.Module] = Counter()
    layer = -1

    def on_layer(index: int) -> Any:
        def enter(*_: Any) -> None:
            nonlocal layer
            layer = index

        return enter

    def on_map(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values = args[0] if args else kwargs.get("hidden_states")
        call = calls[module]
        calls[module] += 1
        if not isinstance(values, Tensor) or not _is_by_token(values):
            return
        group = next((one for one in groups if one.reads(layer, values)), None)
        if group is None:
            # The tensor is kept: no other can then have its storage.
            group = _Group(layer, values)
            groups.append(group)
        group.readers.append((module, call))

    device = next(model.parameters()).device
    if device.type == "meta":
        raise ModelError(
            f"{type(model).__name__}: the inputs of its linear maps are found by running it; load"
            " its weights"
        )
    with ExitStack() as stack:
        for index, module in enumerate(layers):
            stack.enter_context(module.register_forward_pre_hook(on_layer(index)))
        for module in maps:
            stack.enter_context(module.register_forward_pre_hook(on_map, with_kwargs=True))
        ids = torch.arange(_ROWS * _TOKENS, device=device).view(_ROWS, _TOKENS)
        size = int(getattr(model.config.get_text_config(), "vocab_size", 2))
        stack.enter_context(torch.inference_mode())
        stack.enter_context(_evaluating(model))
        try:
            model(input_ids=ids % size, use_cache=False)
        except Exception as error:  # whatever the model's own code raises
            raise ModelError(
                f"{type(model).__name__}: the inputs of its linear maps are found by running it,"
                f" and on token ids alone it does not run: {error}"
            ) from error
    return groups, calls


def _is_by_token(values: Tensor) -> bool:
    return values.shape[:-1] in ((_ROWS, _TOKENS), (_ROWS * _TOKENS,))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)

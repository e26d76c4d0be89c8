"""Find the feed-forward (FFN) sites of a causal language model.

Layouts come from `keepset.sites.families`. What to know before hooking a site (transformers 5.23):

- OPT flattens batch and time before its FFN: h is (batch * tokens, n_units) there, and
  (batch, tokens, n_units) elsewhere. Never count on three dimensions.
- A hook on `down` sees what the layer really multiplies, after any dropout or scaling of h.
- Zamba2 repeats `num_mem_blocks` FFNs over depth. The modules are distinct and the *parameters*
  are tied (`site.down.weight is other.down.weight`), so a change to one depth's weights changes
  all of its copies. Other releases share the module object itself; then one hook on `down` fires
  `n_calls` times in a forward pass, and `call` says which of them a site is. Count calls from
  the start of each forward pass. Gradient checkpointing breaks the count: it calls twice.
- Zamba2 adds a low-rank adapter to gate and up at every depth: h cannot be sliced through
  `gate_up_proj` alone, hence `up` is empty.
- Bloom's `slow_but_exact` reads the weight of the down projection without calling it. Hooks
  would never fire, so such a model is refused.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from keepset.errors import ModelError
from keepset.sites import AnySite
from keepset.sites.families import ACTIVATION_KEYS, FAMILIES, Layout, known_layouts

_EXPERT_WORDS = ("expert", "router", "moe")


@dataclass(frozen=True, eq=False)
class Projection:
    """A linear map that produces the units of a site.

    Attributes:
        module: nn.Linear (units are rows of the weight) or Conv1D (units are columns).
        offsets: unit j sits at `offset + j` of the output, for every offset: (0,), or
            (0, n_units) where gate and up are fused.
    """

    module: nn.Module
    offsets: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Site(AnySite):
    """A site whose units are the inputs of a linear map, as FFN neurons are.

    Attributes:
        down: the linear map (for neurons the down projection); its input (..., n_units) is h.
        n_units: number of units.
        call: which call of `down` within one forward pass this site is.
        n_calls: calls of `down` within one forward pass; 1 unless depths share the module.
        activation: name of the activation function, e.g. "silu".
        gated: whether h = act(gate(x)) * up(x) rather than act(up(x)).
        up: what produces h; empty when unknown or not sliceable.
    """

    down: nn.Module
    n_units: int
    call: int
    n_calls: int
    activation: str
    gated: bool
    up: tuple[Projection, ...]

    def down_weight(self) -> Tensor:
        """The output column of every unit: a view (n_units, d_model); row j is unit j's."""
        weight = self.down.weight
        assert isinstance(weight, Tensor)
        return weight if isinstance(self.down, Conv1D) else weight.T


def find_ffn_sites(model: PreTrainedModel) -> list[Site]:
    """The FFN sites of `model`, in order of execution.

    An unknown family is accepted when every decoder layer holds exactly one known layout, with
    no other linear map beside it and no experts. Its `up` is left empty, so that its units can be
    masked but not cut away until the family has a record in `keepset.sites.families`.

    Args:
        model: a causal language model; its weights are not read, so it may be on the meta device.

    Returns:
        One site per FFN and depth. Empty only for families known to have no FFN.

    Raises:
        ModelError: no site is known for the model, or its modules do not fit the layout.
    """
    config = model.config.get_text_config()
    family = FAMILIES.get(config.model_type)
    if family is not None and family.architecture == "recurrent":
        return []
    prefix, layers = decoder_layers(model)
    routed = _routed(layers)
    layouts = _layouts(config, {i: layer for i, layer in enumerate(layers) if i not in routed})
    if not layouts and not routed:
        raise _unknown(config, layers[0])
    downs = {i: _linear(config, layers[i], layout.down) for i, layout in layouts.items()}
    n_calls = Counter(map(id, downs.values()))
    seen: Counter[int] = Counter()
    sites = []
    for index, layout in layouts.items():
        down = downs[index]
        n_units, up = _projections(config, layers[index], layout, down)
        site = Site(
            kind="ffn",
            layer=index,
            name=f"{prefix}.{index}.{layout.down}",
            down=down,
            n_units=n_units,
            call=seen[id(down)],
            n_calls=n_calls[id(down)],
            activation=(family and family.activation) or _activation(config),
            gated=layout.gated,
            up=up,
        )
        seen[id(down)] += 1
        sites.append(site)
    from keepset.sites.expert_neurons import expert_neurons  # they are sites of this kind

    activation = (family and family.activation) or _activation(config)
    for index, (path, module) in routed.items():
        sites.append(expert_neurons(f"{prefix}.{index}.{path}", module, index, activation))
    return sorted(sites, key=lambda site: site.layer)


def _routed(layers: nn.ModuleList) -> dict[int, tuple[str, nn.Module]]:
    """Layer -> path and module of what holds its routed experts, of the layers that have them."""
    return {
        index: (path, module)
        for index, layer in enumerate(layers)
        for path, module in layer.named_modules()
        if path.rpartition(".")[2] == "experts"
    }


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The module path and the list of the decoder layers.

    Raises:
        ModelError: there is not exactly one list of as many modules as the configuration says.
    """
    config = model.config.get_text_config()
    lists = [
        child
        for child in model.get_decoder().children()
        if isinstance(child, nn.ModuleList) and len(child) == config.num_hidden_layers
    ]
    if len(lists) != 1:
        raise ModelError(
            f"{config.model_type}: looked for one list of {config.num_hidden_layers} decoder layers"
            f" in {type(model).__name__}, found {len(lists)}"
        )
    name = next(name for name, module in model.named_modules() if module is lists[0])
    return name, lists[0]


def _layouts(config: Any, layers: dict[int, nn.Module]) -> dict[int, Layout]:
    """The layout of every layer that holds an FFN, by layer index; `layers` have no experts."""
    family = FAMILIES.get(config.model_type)
    ffn = family.ffn if family is not None else None
    if isinstance(ffn, Layout):
        return dict.fromkeys(layers, ffn)
    if ffn is not None:
        adapted = {index: ffn(layer, config) for index, layer in layers.items()}
        return {index: layout for index, layout in adapted.items() if layout is not None}
    for layer in layers.values():
        _refuse_experts(config, layer)
    for layout in known_layouts():
        if all(_holds_exactly(layer, layout) for layer in layers.values()):
            for layer in layers.values():
                _projections(config, layer, layout, _linear(config, layer, layout.down))
            return dict.fromkeys(layers, replace(layout, up=()))
    return {}


def _holds_exactly(layer: nn.Module, layout: Layout) -> bool:
    """Whether the linear maps beside the down projection are those of `layout`, and only those."""
    parent, dot, _ = layout.down.rpartition(".")
    try:
        block = layer.get_submodule(parent)
    except AttributeError:
        return False
    linear = {parent + dot + name for name, child in block.named_children() if _is_linear(child)}
    return linear == {layout.down, *layout.up}


def _refuse_experts(config: Any, layer: nn.Module) -> None:
    for name, module in layer.named_modules():
        if any(word in name.lower() for word in _EXPERT_WORDS):
            raise ModelError(
                f"{config.model_type}: how this family stores its experts is not known (found"
                f" {name}, {type(module).__name__}); it needs an adapter in"
                " keepset/sites/expert_neurons.py"
            )


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D)


def _linear(config: Any, layer: nn.Module, path: str) -> nn.Module:
    """The linear map at `path` of a decoder layer."""
    try:
        module: Any = layer.get_submodule(path)
    except AttributeError:
        raise ModelError(
            f"{config.model_type}: {type(layer).__name__} has no module {path}, where this family"
            " keeps its FFN; correct the layout in keepset/sites/families.py"
        ) from None
    if not _is_linear(module) or module.weight.ndim != 2 or not module.weight.is_floating_point():
        raise ModelError(
            f"{config.model_type}: {path} is a {type(module).__name__}; keepset needs plain Linear"
            " or Conv1D weights (load the model without quantization)"
        )
    return module


def _sizes(module: Any) -> tuple[int, int]:
    """(inputs, outputs) of a linear map, from its weight."""
    rows, columns = module.weight.shape
    return (rows, columns) if isinstance(module, Conv1D) else (columns, rows)


def _projections(
    config: Any, layer: nn.Module, layout: Layout, down: nn.Module
) -> tuple[int, tuple[Projection, ...]]:
    """The number of units and what produces them; every size is checked."""
    n_units, d_model = _sizes(down)
    fused = layout.gated and len(layout.up) == 1
    offsets = (0, n_units) if fused else (0,)
    projections = []
    for path in layout.up:
        module = _linear(config, layer, path)
        if _sizes(module) != (wanted := (d_model, n_units * len(offsets))):
            raise ModelError(
                f"{config.model_type}: {path} maps {_sizes(module)[0]} values to"
                f" {_sizes(module)[1]}, but {layout.down} needs {wanted[0]} to {wanted[1]}; correct"
                " the layout in keepset/sites/families.py"
            )
        projections.append(Projection(module, offsets))
    return n_units, tuple(projections)


def _activation(config: Any) -> str:
    names = (getattr(config, key, None) for key in ACTIVATION_KEYS)
    return next((name for name in names if isinstance(name, str)), "unknown")


def _unknown(config: Any, layer: nn.Module) -> ModelError:
    wanted = sorted({"+".join((*layout.up, layout.down)) for layout in known_layouts()})
    children = [
        f"{name} ({type(module).__name__})"
        for name, module in layer.named_modules()
        if name and name.count(".") < 2
    ]
    return ModelError(
        f"{config.model_type}: no FFN was recognised. Looked for {'; '.join(wanted)}."
        f" The decoder layer, {type(layer).__name__}, holds {', '.join(children)}."
        " To add the family, give it a record in keepset/sites/families.py"
    )

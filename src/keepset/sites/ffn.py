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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from keepset.errors import ModelError
from keepset.sites import AnySite, is_plain
from keepset.sites.families import ACTIVATION_KEYS, FAMILIES, Layout, known_layouts

_EXPERT_WORDS = ("expert", "router", "moe")
_LISTS = ("layers", "blocks", "h")
"""What transformers calls a list of decoder layers."""
_SHARED = ("shared_expert", "shared_experts", "shared_mlp")


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
        part: which FFN of its layer it is, where others stand beside it: "shared" for experts that
            every token passes, and "" for the only one, or the routed experts.
    """

    down: nn.Module
    n_units: int
    call: int
    n_calls: int
    activation: str
    gated: bool
    up: tuple[Projection, ...]
    part: str = ""

    @property
    def key(self) -> str:
        """Name of the site in files and tables, e.g. "ffn.003", "ffn.003.shared"."""
        return f"{super().key}.{self.part}" if self.part else super().key

    @property
    def readers(self) -> tuple[tuple[nn.Module, int], ...]:
        """The modules that read the units, each with its call within one forward pass."""
        return ((self.down, self.call),)

    def columns(self) -> list[Tensor]:
        """The columns of every unit in each of its readers: (n_units, outputs)."""
        return [self.down_weight()]

    def down_weight(self) -> Tensor:
        """The output column of every unit: a view (n_units, d_model); row j is unit j's."""
        weight = self.down.weight
        assert isinstance(weight, Tensor)
        return weight if isinstance(self.down, Conv1D) else weight.T


def first_units(sites: Sequence[Site]) -> dict[str, int]:
    """Site key -> the number of its first unit in tables, which count the units of a layer through.

    Args:
        sites: Sites in order; a layer's further ones come after its first.
    """
    counts: Counter[int] = Counter()
    first = {}
    for site in sites:
        first[site.key] = counts[site.layer]
        counts[site.layer] += site.n_units
    return first


def find_ffn_sites(model: PreTrainedModel) -> list[Site]:
    """The FFN sites of `model`, in order of execution.

    An unknown family is accepted when every decoder layer holds routed experts, or exactly one
    known layout with no other linear map beside it. Its `up` is left empty, so that its units can
    be masked but not cut away until the family has a record in `keepset.sites.families`.

    Args:
        model: a causal language model; its weights are not read, so it may be on the meta device.

    Returns:
        One site per FFN and depth; what stands beside routed experts comes after them. Empty only
        for families known to have no FFN.

    Raises:
        ModelError: no site is known for the model, or its modules do not fit the layout.
    """
    config = model.config.get_text_config()
    family = FAMILIES.get(config.model_type)
    if family is not None and family.architecture == "recurrent":
        return []
    prefix, layers = decoder_layers(model)
    routed = _routed(config, layers)
    layouts = _layouts(config, {i: layer for i, layer in enumerate(layers) if i not in routed})
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
        sites += _beside(config, f"{prefix}.{index}", layers[index], path, index, activation)
    return sorted(sites, key=lambda site: site.layer)


def _routed(config: Any, layers: nn.ModuleList) -> dict[int, tuple[str, nn.Module]]:
    """Layer -> path and module of what holds its routed experts, of the layers that have them."""
    routed: dict[int, tuple[str, nn.Module]] = {}
    for index, layer in enumerate(layers):
        for path, module in layer.named_modules():
            if path.rpartition(".")[2] != "experts":
                continue
            if index in routed:
                raise ModelError(
                    f"{config.model_type}: layer {index} holds experts twice, {routed[index][0]}"
                    f" and {path}; which of them are its FFN is not known"
                )
            routed[index] = path, module
    return routed


def _beside(
    config: Any, prefix: str, layer: nn.Module, experts: str, index: int, activation: str
) -> list[Site]:
    """The FFN that every token passes beside a layer's routed experts, if there is one.

    Raises:
        ModelError: there are several, or one whose neurons are inputs of no linear map.
    """
    around = {"", experts.rpartition(".")[0]}  # others, as in norms, are no FFN
    outside = {
        path: module
        for path, module in layer.named_modules()
        if path not in ("", experts) and path.rpartition(".")[0] in around
    }
    paths = {
        path: (tail, layout.gated)
        for path, block in outside.items()
        for layout in known_layouts()
        for tail in [layout.down.rpartition(".")[2]]
        if _linear_names(block) == {tail, *(name.rpartition(".")[2] for name in layout.up)}
    }
    unknown = [
        path
        for path, module in outside.items()
        if path.rpartition(".")[2] in _SHARED
        and path not in paths
        and any(True for _ in module.parameters())
    ]
    if unknown or len(paths) > 1:
        what = ", ".join([*unknown, *paths])
        raise ModelError(
            f"{config.model_type}: how layer {index} computes the experts that every token passes"
            f" is not known ({what}), so that their neurons cannot be held"
        )
    sites = []
    for path, (tail, gated) in paths.items():
        down = _linear(config, layer, f"{path}.{tail}")
        sites.append(
            Site(
                kind="ffn",
                layer=index,
                name=f"{prefix}.{path}.{tail}",
                down=down,
                n_units=_sizes(down)[0],
                call=0,
                n_calls=1,
                activation=activation,
                gated=gated,
                up=(),
                part="shared",
            )
        )
    return sites


def _linear_names(block: nn.Module) -> set[str]:
    return {name for name, child in block.named_children() if _is_linear(child)}


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The module path and the list of the decoder layers.

    Raises:
        ModelError: there is not exactly one list of as many modules as the configuration says.
    """
    config = model.config.get_text_config()
    wanted = getattr(config, "num_hidden_layers", None)

    def lists_in(modules: Iterable[nn.Module]) -> list[nn.ModuleList]:
        found = (one for one in modules if isinstance(one, nn.ModuleList) and len(one) == wanted)
        return list(dict.fromkeys(found))

    # Some families name another part as their decoder: there the whole model is searched.
    lists = lists_in(model.get_decoder().children())
    lists = lists or lists_in(
        module for name, module in model.named_modules() if name.rpartition(".")[2] in _LISTS
    )
    if len(lists) != 1:
        raise ModelError(
            f"{config.model_type}: looked for one list of {wanted} decoder layers in"
            f" {type(model).__name__}, found {len(lists)}"
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
    if not layers:
        return {}
    for layer in layers.values():
        _refuse_experts(config, layer)
    for layout in known_layouts():
        if all(_holds_exactly(layer, layout) for layer in layers.values()):
            for layer in layers.values():
                _projections(config, layer, layout, _linear(config, layer, layout.down))
            return dict.fromkeys(layers, replace(layout, up=()))
    raise _unknown(config, next(iter(layers.values())))


def _holds_exactly(layer: nn.Module, layout: Layout) -> bool:
    """Whether the linear maps beside the down projection are those of `layout`, and only those."""
    parent, dot, _ = layout.down.rpartition(".")
    try:
        block = layer.get_submodule(parent)
    except AttributeError:
        return False
    linear = {parent + dot + name for name in _linear_names(block)}
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
    if not _is_linear(module) or module.weight.ndim != 2 or not is_plain(module.weight):
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

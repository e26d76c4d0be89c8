"""The neurons of routed experts: a mixture of experts as one wide FFN.

y(t) is the sum over experts e of r_e(t) W_e a_e(t), where r_e is the router's weight, 0 where the
token is not routed to e. So the layer is an FFN whose hidden activations are h = r_e a_e, of all
experts side by side, and most of which are 0 at any token: routing is a choice of neurons, too. A
unit is a neuron of an expert, `expert * n_neurons + neuron`; its output column is that of W_e.

In transformers 5 experts are stored together, (experts, ...), by classes that say how
(`use_experts_implementation`). Shared experts, which every token passes, are a further site of the
layer, an FFN as any other (`Site.part`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from keepset.errors import ModelError
from keepset.sites import is_plain
from keepset.sites.ffn import Site


@dataclass(frozen=True, eq=False)
class ExpertNeurons(Site):
    """The neurons of all routed experts of a layer; `down` is the module that holds the experts."""

    @property
    def n_experts(self) -> int:
        """Number of routed experts."""
        module: Any = self.down
        return int(module.down_proj.shape[0])

    def down_weight(self) -> Tensor:
        """The output column of every neuron, (n_units, d_model); a copy, unless transposed."""
        module: Any = self.down
        weight: Tensor = module.down_proj
        return (weight if module.is_transposed else weight.transpose(1, 2)).flatten(0, 1)


def holds_experts(module: nn.Module) -> bool:
    """Whether a module holds routed experts, in any form."""
    return type(module).__name__.endswith("Experts") and not isinstance(module, nn.ModuleList)


def expert_neurons(name: str, module: nn.Module, layer: int, activation: str) -> ExpertNeurons:
    """The site of the experts that `module` holds.

    Raises:
        ModelError: how they are stored is not known, they are quantised, or a norm comes after each
            expert, so that its neurons are no inputs of a linear map.
    """
    experts: Any = module
    known = ("is_transposed", "has_bias", "has_gate", "down_proj", "_apply_gate")
    if missing := [part for part in known if not hasattr(experts, part)]:
        raise ModelError(
            f"{name}: {type(module).__name__} does not store its experts as transformers' own"
            f" implementations do (no {', '.join(missing)}); their neurons cannot be held"
        )
    if getattr(experts, "has_post_expert_norm", False):
        raise ModelError(f"{name}: a norm follows every expert; their neurons cannot be held")
    weight = experts.down_proj
    parts = {"down_proj": weight, **dict(module.named_parameters(recurse=False))}
    for part, tensor in parts.items():
        wanted = isinstance(tensor, Tensor) and (tensor.ndim == 3 or tensor is not weight)
        if not wanted or not is_plain(tensor):
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            raise ModelError(
                f"{name}: the experts are quantised or packed ({part} is {kind}); load the model"
                " dequantised, in float32, bfloat16 or float16"
            )
    n_experts, n_neurons = weight.shape[0], weight.shape[1 if experts.is_transposed else 2]
    return ExpertNeurons(
        kind="ffn",
        layer=layer,
        name=name,
        down=module,
        n_units=n_experts * n_neurons,
        call=0,
        n_calls=1,
        activation=activation,
        gated=bool(experts.has_gate),
        up=(),
    )

"""Hold a keep rule on the neurons of routed experts, seen as one wide FFN."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from keepset.hold.slices import standing_forward
from keepset.sites.expert_neurons import ExpertNeurons

See = Callable[[ExpertNeurons, Tensor], Tensor | None]
"""Sees h (tokens, n_units); returns a replacement, or None to leave it alone."""


@contextmanager
def seeing(site: ExpertNeurons, see: See) -> Iterator[None]:
    """Let `see` see, and replace, the hidden activations of a layer's experts."""
    forward = partial(_forward, site, site.down.forward, see)
    with standing_forward(site.down, forward):
        yield


def _forward(
    site: ExpertNeurons,
    dense: Callable[..., Any],
    see: See,
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
    *rest: Any,
    **options: Any,
) -> Any:
    """What the module that holds the experts computes; its own function, where h stays as it is."""
    chosen = _chosen(site, top_k_index, top_k_weights)
    h = hidden_activations(site, hidden_states, chosen)
    changed = see(site, h)
    if changed is None:
        return dense(hidden_states, top_k_index, top_k_weights, *rest, **options)
    return project(site, changed, chosen).to(hidden_states.dtype)


def _chosen(site: ExpertNeurons, index: Tensor, weights: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each expert, the tokens that are routed to it, and their router's weights."""
    parts = []
    for expert in range(site.n_experts):
        tokens, places = (index == expert).nonzero(as_tuple=True)
        parts.append((tokens, weights[tokens, places]))
    return parts


def hidden_activations(
    site: ExpertNeurons, x: Tensor, chosen: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """h, router's weights times activations: (tokens, n_units), 0 where a token is not routed."""
    module: Any = site.down
    n_neurons = site.n_units // site.n_experts
    h = x.new_zeros(len(x), site.n_units)
    for expert, (tokens, weights) in enumerate(chosen):
        if not len(tokens):
            continue
        name = "gate_up_proj" if module.has_gate else "up_proj"
        out = _linear(module, name, expert, x[tokens])
        active = module._apply_gate(out) if module.has_gate else module.act_fn(out)
        first = expert * n_neurons
        h[tokens, first : first + n_neurons] = (active * weights[:, None]).to(h.dtype)
    return h


def project(site: ExpertNeurons, h: Tensor, chosen: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The down projections of h (tokens, n_units): (tokens, d_model)."""
    module: Any = site.down
    n_neurons = site.n_units // site.n_experts
    y = h.new_zeros(len(h), site.down_weight().shape[1])
    for expert, (tokens, weights) in enumerate(chosen):
        if not len(tokens):
            continue
        first = expert * n_neurons
        part = _linear(
            module, "down_proj", expert, h[tokens, first : first + n_neurons], bias=False
        )
        if module.has_bias:
            part = part + weights[:, None].to(part.dtype) * module.down_proj_bias[expert]
        y = y.index_add(0, tokens, part.to(y.dtype))
    return y


def _linear(module: Any, name: str, expert: int, x: Tensor, *, bias: bool = True) -> Tensor:
    weight = getattr(module, name)[expert]
    y = x @ weight if module.is_transposed else nn.functional.linear(x, weight)
    return y + getattr(module, f"{name}_bias")[expert] if bias and module.has_bias else y

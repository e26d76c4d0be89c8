"""The feed-forward block of a site, outside its model and inside it.

Outside: its units, and its weights as kernels read them. Inside: something else stands in for its
projections (`StandIn`), and the block's module is left as it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from keepset.errors import KernelError
from keepset.hold.slices import Forward, sliceable, standing_forward
from keepset.kernels.weights import FfnWeights
from keepset.sites.ffn import Projection, Site

PLAIN = "plain"
"""The path that computes every unit (or every unit that was not cut away), by torch."""

_ACTIVATIONS = {
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}
# A wrong formula is wrong by much more; the running window's sums are rounded as much anyway.
_AGREES = {torch.float64: 1e-9, torch.float32: 1e-4}
_AGREES_LOW_PRECISION = 3e-2


def units_of(site: Site, x: Tensor) -> Tensor:
    """h of the block's inputs x (n, d_model), with the weights that are in place: (n, units)."""
    act = ACT2FN[site.activation]
    outs: list[Tensor] = []
    for projection in site.up:
        module: Any = projection.module
        # forward, not a call: hooks are for the tokens of a pass, and these are earlier tokens.
        outs += module.forward(x).chunk(len(projection.offsets), dim=-1)
    return act(outs[0]) * outs[1] if site.gated else act(outs[0])


def separable(site: Site) -> bool:
    """Whether `units_of` may be tried: what makes h is known, and its units can be sliced."""
    return site.activation in ACT2FN and sliceable(site)


def computes(site: Site, x: Tensor, h: Tensor) -> bool:
    """Whether `units_of` gives what the model itself computes.

    Args:
        site: A site that is `separable`.
        x: The block's input at the last token, (1, d_model).
        h: What the down projection was given, (..., units).
    """
    return agrees(units_of(site, x), h.reshape(-1, h.shape[-1])[-1:])


def agrees(computed: Tensor, expected: Tensor) -> bool:
    """Whether two results differ by no more than rounding."""
    error = (computed.double() - expected.double()).norm()
    tolerance = _AGREES.get(expected.dtype, _AGREES_LOW_PRECISION)
    return bool(error <= tolerance * expected.double().norm())


def ffn_weights(site: Site, rows: Tensor) -> FfnWeights:
    """The weights that are in place, as the kernels read them; a copy only of Conv1D's.

    Args:
        site: The site; its projections may have been cut.
        rows: (n, d_model) neuron-major weights of the down projection.

    Raises:
        KernelError: no kernel has the site's activation or layout.
    """
    act = _ACTIVATIONS.get(site.activation)
    if act is None or not sliceable(site):
        raise KernelError(
            f"no kernel for the blocks of {site.name} (activation {site.activation},"
            f" {len(site.up)} known projections)"
        )
    parts = part_weights(site, rows.shape[0])
    (up, up_bias), (gate, gate_bias) = parts[-1], parts[0] if site.gated else (None, None)
    down: Any = site.down
    bias = None if down.bias is None else down.bias.detach()
    return FfnWeights(up, rows, gate, act, up_bias, gate_bias, bias)


def part_weights(site: Site, n: int | None = None) -> list[tuple[Tensor, Tensor | None]]:
    """Weight (n, d_model) and bias (n,) of gate and up, or of up alone.

    Args:
        site: A site that is `separable`.
        n: Its units, where its projections have been cut.
    """
    n = site.n_units if n is None else n
    return [
        _part(projection, number * n, n)
        for projection in site.up
        for number in range(len(projection.offsets))
    ]


def _part(projection: Projection, start: int, n: int) -> tuple[Tensor, Tensor | None]:
    """Weight (n, d_model) and bias (n,) of the units from `start` of a projection's output."""
    module: Any = projection.module
    weight = module.weight.detach()
    if isinstance(module, Conv1D):
        weight = weight[:, start : start + n].T.contiguous()
    else:
        weight = weight[start : start + n]
    bias = getattr(module, "bias", None)
    return weight, None if bias is None else bias.detach()[start : start + n]


class StandIn(ABC):
    """Base of what stands in for the projections of a site.

    While an answer waits, the projections that make h return no columns at all, which the
    element-wise operations after them pass on, and the down projection returns the answer.

    Attributes:
        site: The site.
        separable: Whether its units can be computed outside the model; None until it is known.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.separable: bool | None = None if separable(site) else False
        self._x: Tensor | None = None
        self._answer: Tensor | None = None

    @abstractmethod
    def answer(self, x: Tensor) -> Tensor | None:
        """The block's output for x (tokens, d_model); None where the projections are to run."""

    @abstractmethod
    def down(self, h: Tensor) -> Tensor:
        """The down projection of h (..., units), where they ran."""

    def begins(self, x: Tensor) -> bool:
        """Whether a call of the block begins with x; it goes to the other projection too."""
        return x is not self._x

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Stand in; everything is put back on exit."""
        with ExitStack() as stack:
            for projection in self.site.up:
                module: Any = projection.module
                stack.enter_context(standing_forward(module, self._or_nothing(module.forward)))
                hook = module.register_forward_pre_hook(self._before_up)
                stack.callback(hook.remove)
            stack.enter_context(standing_forward(self.site.down, self._down))
            yield

    def _or_nothing(self, project: Forward) -> Forward:
        def forward(x: Tensor) -> Tensor:
            return project(x) if self._answer is None else x.new_empty(*x.shape[:-1], 0)

        return forward

    def _before_up(self, _: Any, args: tuple[Any, ...]) -> None:
        x = args[0]
        if self.begins(x):
            self._x, self._answer = x, None
            answer = self.answer(x.reshape(-1, x.shape[-1]))
            self._answer = None if answer is None else answer.view(*x.shape[:-1], -1)

    def _down(self, h: Tensor) -> Tensor:
        x, answer, self._x, self._answer = self._x, self._answer, None, None
        if answer is not None:
            return answer
        if self.separable is None and x is not None:
            self.separable = computes(self.site, x.reshape(-1, x.shape[-1])[-1:], h)
        return self.down(h)

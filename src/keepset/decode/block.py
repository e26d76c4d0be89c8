"""The feed-forward block of a site, outside its model and inside it.

Outside: its units, and its weights as kernels read them. Inside: another function stands in for the
block (`Bypass`), and the block's module is left as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from keepset.errors import KernelError
from keepset.hold.inputs import sliceable
from keepset.kernels.weights import FfnWeights
from keepset.sites import Projection, Site

Forward = Callable[[Tensor], Tensor]
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
        # forward, not a call: hooks are for the tokens of a pass, and these have passed.
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
    seen = h.reshape(-1, h.shape[-1])[-1:].double()
    error = (units_of(site, x).double() - seen).norm()
    return bool(error <= _AGREES.get(h.dtype, _AGREES_LOW_PRECISION) * seen.norm())


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
    n = rows.shape[0]
    parts = [
        _part(projection, number * n, n)
        for projection in site.up
        for number in range(len(projection.offsets))
    ]
    (up, up_bias), (gate, gate_bias) = parts[-1], parts[0] if site.gated else (None, None)
    down: Any = site.down
    bias = None if down.bias is None else down.bias.detach()
    return FfnWeights(up, rows, gate, act, up_bias, gate_bias, bias)


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


class Bypass:
    """Lets another function compute a block.

    While its answer waits, the projections that make h return no columns at all, which the
    element-wise operations after them pass on; the down projection's stand-in takes the answer.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._answer: Tensor | None = None

    def give(self, y: Tensor) -> None:
        """Answer the block's running call with y, shaped as its output."""
        self._answer = y

    def take(self) -> Tensor | None:
        """The answer, once; for the stand-in of the down projection."""
        answer, self._answer = self._answer, None
        return answer

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Stand in for the projections that make h."""
        with ExitStack() as stack:
            for projection in self._site.up:
                module: Any = projection.module
                stack.enter_context(standing_forward(module, self._or_nothing(module.forward)))
            yield

    def _or_nothing(self, project: Forward) -> Forward:
        def forward(x: Tensor) -> Tensor:
            return project(x) if self._answer is None else x.new_empty(*x.shape[:-1], 0)

        return forward

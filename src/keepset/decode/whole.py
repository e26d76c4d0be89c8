"""A feed-forward block computed by one function, where a kernel can take it, inside its own model.

The block's module is left as it is. While an answer is there, the projections that make h return
no columns at all, which the element-wise operations after them pass on, and the down projection
returns the answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from keepset.errors import KernelError
from keepset.hold.inputs import sliceable
from keepset.kernels import choice, dispatch
from keepset.kernels.choice import TRITON_FFN
from keepset.kernels.weights import MAX_ROWS, FfnWeights
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
# A wrong formula is wrong by much more; the running window's sums bear this rounding anyway.
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


def can_be_apart(site: Site) -> bool:
    """Whether `units_of` may be tried: what makes h is known, and its units can be sliced."""
    return site.activation in ACT2FN and sliceable(site)


def agrees(site: Site, x: Tensor, h: Tensor) -> bool:
    """Whether `units_of` gives what the model itself computes.

    Args:
        site: A site that `can_be_apart`.
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
        _part(projection, at * n, n)
        for projection in site.up
        for at in range(len(projection.offsets))
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
    """Let `forward` stand in for a module's own; its hooks go on as before."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


class Block:
    """The projections of a site that make h; silent while an answer waits."""

    def __init__(self, site: Site) -> None:
        self.site = site
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
        """Let the projections be silent while an answer waits."""
        with ExitStack() as stack:
            for projection in self.site.up:
                module: Any = projection.module
                stack.enter_context(standing_forward(module, self._silent(module.forward)))
            yield

    def _silent(self, own: Forward) -> Forward:
        def forward(x: Tensor) -> Tensor:
            return own(x) if self._answer is None else x.new_empty(*x.shape[:-1], 0)

        return forward


Kernel = Callable[[Tensor, FfnWeights], Tensor]
"""(x (rows, d_model), weights) -> (rows, d_model)."""


@dataclass
class Alike:
    """What the whole blocks of a model have in common.

    Attributes:
        label: What they do, for the record of measured times.
        paths: Counts tokens x sites by path.
        blocks: All of them.
        modes: Which path is taken, by sizes.
    """

    label: str
    paths: Counter[str]
    blocks: list[WholeBlock] = field(default_factory=list)
    modes: dict[tuple[Any, ...], str] = field(default_factory=dict)


class WholeBlock:
    """A site whose whole block a kernel computes where that is faster, up to `MAX_ROWS` tokens."""

    def __init__(
        self, site: Site, plain: Forward, kernel: Kernel, rows: Tensor, alike: Alike
    ) -> None:
        """Prepare a site.

        Args:
            site: The site.
            plain: (..., units) h -> output, what the kernel stands in for.
            kernel: Computes the whole block.
            rows: (n, d_model) neuron-major weights of the down projection.
            alike: What it shares with the others; it is entered there.
        """
        self.site, self._plain, self._kernel, self._alike = site, plain, kernel, alike
        self._rows = rows
        self._block = Block(site)
        self._ffn: FfnWeights | None = None
        self._x: Tensor | None = None
        # None: not yet known whether units can be computed apart from the model's forward pass.
        self._apart: bool | None = None if can_be_apart(site) else False
        alike.blocks.append(self)

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Stand in for the site's projections."""
        with ExitStack() as stack:
            stack.enter_context(self._block.standing_in())
            for projection in self.site.up:
                hook = projection.module.register_forward_pre_hook(self._before_up)
                stack.callback(hook.remove)
            stack.enter_context(standing_forward(self.site.down, self._down))
            yield

    def _before_up(self, _: Any, args: tuple[Any, ...]) -> None:
        x = args[0]
        if x is self._x:  # the other projection of the same call
            return
        self._block.take()
        self._x = x
        flat = x.reshape(-1, x.shape[-1])
        if self._apart and len(flat) <= MAX_ROWS and self._mode(flat) == TRITON_FFN:
            self._block.give(self._run(flat).view(*x.shape[:-1], -1))
            self._alike.paths[TRITON_FFN] += len(flat)

    def _down(self, h: Tensor) -> Tensor:
        answer, x, self._x = self._block.take(), self._x, None
        if answer is not None:
            return answer
        if self._apart is None and x is not None:
            self._apart = agrees(self.site, x.reshape(-1, x.shape[-1])[-1:], h)
            if not self._apart:
                choice.refuse(TRITON_FFN, f"{self.site.name} computes more than its layout says")
        return self._plain(h)

    def _run(self, x: Tensor) -> Tensor:
        if self._ffn is None:
            self._ffn = ffn_weights(self.site, self._rows)
        return self._kernel(x, self._ffn)

    def _mode(self, x: Tensor) -> str:
        modes, shape = self._alike.modes, tuple(self._rows.shape)
        key = (*shape, 1 << (len(x) - 1).bit_length())
        if key not in modes:
            modes[key] = self._measure(x, key)
        return modes[key]

    def _measure(self, x: Tensor, sizes: tuple[Any, ...]) -> str:
        """`TRITON_FFN` or `PLAIN`, whichever is faster; rounds take the blocks in turn."""
        others = [at for at in self._alike.blocks if at._rows.shape == self._rows.shape]

        def plain(at: int) -> Tensor:
            block = others[at % len(others)]
            return block._plain(units_of(block.site, x))

        def kernel(at: int) -> Tensor:
            return others[at % len(others)]._run(x)

        n, d, rows = sizes
        key = (self._alike.label, f"{n}x{d}", f"rows={rows}", *dispatch.setting(x))
        with uncounted(self._alike.paths):
            return dispatch.fastest(key, {PLAIN: plain, TRITON_FFN: kernel})


@contextmanager
def uncounted(paths: Counter[str]) -> Iterator[None]:
    """Leave out of `paths` what runs only to be timed."""
    before = paths.copy()
    try:
        yield
    finally:
        paths.clear()
        paths.update(before)

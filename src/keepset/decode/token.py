"""A token through linear maps, on a CPU: by torch or by one kernel, whichever is faster."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from keepset.decode.position import Position
from keepset.decode.whole import uncounted
from keepset.hold.inputs import rules_run_by
from keepset.hold.slices import Forward
from keepset.kernels import dispatch
from keepset.kernels.clock import taking_turns
from keepset.kernels.selection import NUMBA, TRITON_DOWN, Selection
from keepset.kernels.torch_ffn import DOWN_PATHS


class TokenMap(ABC):
    """A linear map, or several of one input, that a token can take by either path.

    Attributes:
        rows: The weights, as the kernel reads them; maps of one shape share a path.
        ins: Numbers of one token.
        peers: The other maps of the model that do the same.
    """

    has_triton = False
    """Whether `by_triton` is there."""

    def __init__(self, rows: Tensor, ins: int, peers: TokenPaths) -> None:
        self.rows, self.ins, self.peers = rows, ins, peers
        peers.members.append(self)

    @abstractmethod
    def by_torch(self, x: Tensor) -> Tensor:
        """A token x (..., ins) -> (..., outs), by torch."""

    @abstractmethod
    def by_numba(self, x: Tensor) -> Tensor:
        """The same by a kernel on a CPU."""

    def by_triton(self, x: Tensor) -> Tensor:
        """The same by a kernel on a GPU, where `has_triton`."""
        raise TypeError(f"{type(self).__name__}: no kernel of Triton's for {tuple(x.shape)}")


class TokenProjection(TokenMap):
    """Stands in for the forward of an `nn.Linear` all of whose weights are read."""

    def __init__(self, module: nn.Linear, position: Position, peers: TokenPaths) -> None:
        """`position` will follow the passes of the model."""
        super().__init__(module.weight.detach(), module.in_features, peers)
        self._module, self._forward, self._position = module, module.forward, position
        self._by_numba: Forward | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """x (..., ins) -> (..., outs)."""
        if x.numel() == self.ins and not self._position.opens:
            return self.peers.run(self, x)
        return self._forward(x)

    def by_torch(self, x: Tensor) -> Tensor:
        """The module's own forward."""
        return self._forward(x)

    def by_numba(self, x: Tensor) -> Tensor:
        """The same, with the weights read in the order of memory."""
        if self._by_numba is None:
            from keepset.kernels.numba_ffn import TokenLinear  # compiled at its first use

            self._by_numba = TokenLinear(self.rows, self._module.bias)
        return self._by_numba(x)


class TokenPaths:
    """Which path the maps of a model take at one token, by their shape.

    Attributes:
        paths: Counts tokens x sites by path.
        members: All of the maps.
    """

    def __init__(self, label: str, paths: Counter[str], selection: Selection) -> None:
        """Start without members; `label` says what they do, for the record of times."""
        self.paths = paths
        self.members: list[TokenMap] = []
        self._label, self._selection = label, selection
        self._path_of: dict[tuple[Any, ...], tuple[str, Callable[..., Tensor]]] = {}

    def prepare(self) -> None:
        """Compile or load what may run, which is not the work of the first token."""
        if self.members and self.take_numba(self.members[0].rows):
            with uncounted(self.paths), torch.inference_mode():
                first = self.members[0]
                first.by_numba(first.rows.new_zeros(first.ins))

    def run(self, member: TokenMap, x: Tensor) -> Tensor:
        """Tokens x of `member`, by the fastest path for their sizes, which is timed once."""
        key = (member.rows.shape, x.numel())
        path = self._path_of.get(key)
        if path is None:
            with uncounted(self.paths):
                path = self._path_of[key] = self._fastest(member, x)
        return path[1](member, x)

    def path(self, member: TokenMap, tokens: int) -> str | None:
        """The path that as many tokens of `member` have run by; None where none have."""
        return self._path_of.get((member.rows.shape, tokens * member.ins), (None,))[0]

    def take_numba(self, x: Tensor) -> bool:
        """Whether kernels may run for x: they can, and no path of torch is forced."""
        if rules_run_by(self._selection, x.device, x.dtype) != NUMBA:
            return False
        return self._selection.forced_among((NUMBA, *DOWN_PATHS)) in (None, NUMBA)

    def _fastest(self, member: TokenMap, x: Tensor) -> tuple[str, Callable[..., Tensor]]:
        calls: dict[str, Callable[..., Tensor]] = {"torch": lambda one, x: one.by_torch(x)}
        if self.take_numba(x):
            calls[NUMBA] = lambda one, x: one.by_numba(x)
        elif member.has_triton and self._selection.may_use_triton("ffn", x.device):
            calls[TRITON_DOWN] = lambda one, x: one.by_triton(x)
        if len(calls) == 1:
            return next(iter(calls.items()))
        if self._selection.forced_among([NUMBA]):
            return NUMBA, calls[NUMBA]
        alike = [other for other in self.members if other.rows.shape == member.rows.shape]
        runs = {name: taking_turns(alike, partial(call, x=x)) for name, call in calls.items()}
        shape = "x".join(map(str, member.rows.shape))
        key = (self._label, shape, f"tokens={x.numel() // member.ins}", *dispatch.setting(x))
        name = self._selection.fastest_ffn(key, runs)
        return name, calls[name]

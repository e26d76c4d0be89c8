"""The state itself, one token at a time: only one H is ever held.

H of a group is (batch, heads of the group, head_dim, n_state). Scoring needs no more of it than
its squared size in every channel, so a pass over any number of tokens holds the state of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from keepset.kernels.naive import time_steps

if TYPE_CHECKING:
    from keepset.kernels.numba_scan import Inputs


@dataclass(frozen=True)
class Scan:
    """What a mixer hands to its scan."""

    x: Tensor  # (batch, tokens, heads, head_dim)
    dt: Tensor  # (batch, tokens, heads), before bias and softplus
    A: Tensor  # (heads,) negative
    B: Tensor  # (batch, tokens, groups, n_state), what is written
    C: Tensor  # (batch, tokens, groups, n_state), what is read
    D: Tensor | None  # (heads,) skip connection
    rest: dict[str, Any]  # the other arguments: dt_bias, dt_softplus, dt_limit, ...
    compiled: bool = False  # whether numba runs the recurrence, else torch

    def run(self, function: Callable[..., Any]) -> Any:
        """Call transformers' own scan, or one of the same arguments."""
        rest = dict(self.rest)
        chunk = rest.pop("chunk_size")
        return function(self.x, self.dt, self.A, self.B, self.C, chunk, D=self.D, **rest)

    def inputs(self) -> Inputs:
        """What the kernels that numba compiles read."""
        from keepset.kernels.numba_scan import Inputs  # imported at its first use

        return Inputs.of(self.x, self.dt, self.A, self.B, self.C, self.D, **self.rest)

    def masked(self, write: Tensor | None = None, read: Tensor | None = None) -> Scan:
        """With B multiplied by `write` and C by `read`: ([batch, tokens,] groups, n_state)."""
        B = self.B if write is None else self.B * write.to(self.B.dtype)
        C = self.C if read is None else self.C * read.to(self.C.dtype)
        return replace(self, B=B, C=C)

    def taken(self, kept: Tensor) -> Scan:
        """The channels `kept` (groups, n_state) bool alone: as if the state had no others.

        B and C have as many channels as the group that keeps the most; the rest are zero there.
        """
        n_most = max(1, int(kept.sum(dim=1).max()))  # scans do not take a state of no channels
        marks, channels = kept.to(torch.int8).sort(dim=1, descending=True, stable=True)
        marks, channels = marks[:, :n_most], channels[:, :n_most]
        shape = (*self.B.shape[:3], n_most)
        B, C = (values.gather(3, channels.expand(shape)) for values in (self.B, self.C))
        part = replace(self, B=B, C=C)
        return part if bool(marks.all()) else part.masked(marks, marks)


def channel_sizes(scan: Scan) -> Tensor:
    """The sum of H^2 over heads and head dims of each group: (batch, tokens, groups, n) float32."""
    if scan.compiled:
        from keepset.kernels import numba_scan

        return numba_scan.channel_sizes(scan.inputs())
    recurrence = Recurrence(scan)
    return recurrence.sizes(recurrence.empty(), 0, recurrence.tokens)


class Recurrence:
    """H(t) = exp(dt(t) A) H(t-1) + dt(t) x(t) B(t)^T, in float32."""

    def __init__(self, scan: Scan) -> None:
        batch, tokens, heads, head_dim = scan.x.shape
        groups, n = scan.B.shape[2:]
        step = time_steps(
            scan.dt,
            scan.rest.get("dt_bias"),
            scan.rest.get("dt_softplus", False),
            scan.rest.get("dt_limit", (0.0, float("inf"))),
        )
        grouped = (batch, tokens, groups, heads // groups)
        self._decay = (step * scan.A.float()).exp().view(*grouped, 1, 1)
        self._write = (scan.x.float() * step[..., None]).view(*grouped, head_dim, 1)
        self._B = scan.B.float()[:, :, :, None, None]
        self.C = scan.C.float()
        """(batch, tokens, groups, n_state)."""
        self.tokens = tokens
        self._shape = (*self._write.shape[:1], *self._write.shape[2:5], n)

    def empty(self) -> Tensor:
        """The state before the first token: (batch, groups, heads per group, head_dim, n_state)."""
        return self._write.new_zeros(self._shape)

    def advance(self, state: Tensor, t: int, write: Tensor | None = None) -> Tensor:
        """Advance `state` to token t, in place; B is multiplied by `write` (batch, groups, n)."""
        B = self._B[:, t] if write is None else self._B[:, t] * write[:, :, None, None]
        return state.mul_(self._decay[:, t]).addcmul_(self._write[:, t], B)

    def sizes(self, state: Tensor, start: int, stop: int) -> Tensor:
        """Run tokens start..stop, and advance `state` in place.

        Returns:
            The sum of H^2 over heads and head dims of each group: (batch, stop - start, groups, n).
        """
        sums = self.C.new_empty(self.C.shape[0], stop - start, *self.C.shape[2:])
        square = torch.empty_like(state)
        for t in range(start, stop):
            torch.square(self.advance(state, t), out=square)
            torch.sum(square, dim=(2, 3), out=sums[:, t - start])
        return sums

    def read(self, state: Tensor, start: int, stop: int, kept: Tensor) -> Tensor:
        """Run tokens start..stop of the `kept` channels (batch, groups, n), and read them.

        `state` must be zero in the others; it is advanced in place.

        Returns:
            y without the skip connection: (batch, stop - start, heads, head_dim).
        """
        batch, groups, per_group, head_dim, n = self._shape
        kept = kept.to(state.dtype)
        rows = []
        for t in range(start, stop):
            flat = self.advance(state, t, kept).view(batch * groups, per_group * head_dim, n)
            rows.append(torch.bmm(flat, self.C[:, t].reshape(batch * groups, n, 1)))
        return (
            torch.stack(rows)
            .view(stop - start, batch, groups * per_group, head_dim)
            .transpose(0, 1)
        )

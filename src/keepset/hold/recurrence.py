"""What a mixer hands to its scan, and the state itself, one token at a time.

Only one state H is ever held: (batch, groups, heads of the group, head_dim, n_state). Scoring needs
no more of it than its squared size in every channel, so a pass over any number of tokens holds the
state of one. Each kind of memory (`keepset.hold.memories`) defines a `Scan` and a `Recurrence`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

if TYPE_CHECKING:
    from keepset.kernels.numba_scan import Inputs


class Scan(ABC):
    """What a mixer hands to its scan.

    Attributes:
        interacts: Whether what a channel holds depends on the others, or its reading does.
        C: What is read of each channel, (batch, tokens, groups, n_state).
    """

    C: Tensor
    interacts: bool = False

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Tokens of each row."""

    @property
    @abstractmethod
    def carries(self) -> bool:
        """Whether a state comes from before or is wanted for later."""

    @abstractmethod
    def run(self) -> Any:
        """What the mixer's own function returns."""

    @abstractmethod
    def output(self) -> Tensor:
        """y alone, without a state: (batch, tokens, heads, head_dim)."""

    @abstractmethod
    def masked(self, write: Tensor | None = None, read: Tensor | None = None) -> Scan:
        """With what is written multiplied by `write`, and what is read by `read`.

        Both ([batch, tokens,] groups, n_state).
        """

    @abstractmethod
    def pruned(self, kept: Tensor) -> Scan:
        """What a mixer with the channels `kept` (groups, n_state) bool alone runs.

        Where no state is carried it may be narrower, and so faster.
        """

    @abstractmethod
    def recurrence(self) -> Recurrence:
        """The recurrence in float32."""

    @abstractmethod
    def with_skip(self, y: Tensor) -> Tensor:
        """y in float32, with what the mixer adds to what was read."""

    def compiled_inputs(self) -> Inputs | None:
        """What the kernels that numba compiles read; None where torch runs the recurrence."""
        return None

    def sizes(self) -> Tensor:
        """The sum of H^2 over heads and head dims of each group: (batch, tokens, groups, n)."""
        given = self.compiled_inputs()
        if given is not None:
            from keepset.kernels.numba_scan import channel_sizes  # imported at its first use

            return channel_sizes(given)
        recurrence = self.recurrence()
        return recurrence.sizes(recurrence.empty(), 0, recurrence.tokens)


@dataclass(frozen=True)
class AdditiveScan(Scan):
    """A scan whose channels do not influence one another.

    Attributes:
        B: What is written to each channel, (batch, tokens, groups, n_state).
        C: What is read of it, the same.
    """

    B: Tensor
    C: Tensor

    @property
    def tokens(self) -> int:
        """See `Scan`."""
        return self.B.shape[1]

    def masked(self, write: Tensor | None = None, read: Tensor | None = None) -> Self:
        """See `Scan`."""
        B = self.B if write is None else self.B * write.to(self.B.dtype)
        C = self.C if read is None else self.C * read.to(self.C.dtype)
        return replace(self, B=B, C=C)

    def pruned(self, kept: Tensor) -> Self:
        """See `Scan`."""
        return self.masked(kept, kept)

    def with_skip(self, y: Tensor) -> Tensor:
        """See `Scan`."""
        return y


class Recurrence(ABC):
    """A state that is run token by token, in float32.

    Attributes:
        C: What is read of each channel, (batch, tokens, groups, n_state).
        tokens: Of each row.
    """

    C: Tensor
    tokens: int
    _shape: tuple[int, ...]

    def empty(self) -> Tensor:
        """The state before the first token: (batch, groups, heads per group, head_dim, n_state)."""
        return self.C.new_zeros(self._shape)

    @abstractmethod
    def advance(self, state: Tensor, t: int, write: Tensor | None = None) -> Tensor:
        """Advance `state` to token t, in place; what is written is multiplied by `write`.

        (batch, groups, n).
        """

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


class AdditiveRecurrence(Recurrence):
    """H(t) = decay(t) H(t-1) + gain(t) B(t)^T and y(t) = H(t) C(t), in float32."""

    def __init__(self, decay: Tensor, gain: Tensor, scan: AdditiveScan) -> None:
        """Prepare the recurrence of a scan.

        Args:
            decay: (batch, tokens, groups, heads per group, 1, 1), or n_state for the last 1.
            gain: (batch, tokens, groups, heads per group, head_dim, 1).
            scan: Gives B and C.
        """
        self._decay, self._gain = decay, gain
        self._B = scan.B.float()[:, :, :, None, None]
        self.C = scan.C.float()
        self.tokens = scan.tokens
        self._shape = (len(gain), *gain.shape[2:5], self.C.shape[3])

    def advance(self, state: Tensor, t: int, write: Tensor | None = None) -> Tensor:
        """See `Recurrence`."""
        B = self._B[:, t] if write is None else self._B[:, t] * write[:, :, None, None]
        return state.mul_(self._decay[:, t]).addcmul_(self._gain[:, t], B)

"""The running window of a context: what its tokens add up to, and the set that it holds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from keepset.decode.score import UnitScore
from keepset.rules.masks import top_mask


class RunningWindow:
    """The window that the newest tokens of a context are in.

    Its set is chosen on the mean score of *every* unit over the window before. Of a token that ran
    with kept units alone only the block's input is known: it waits, and its units are computed at
    the end of the window.

    Attributes:
        kept: (batch, n_units) bool, the set that holds; None where all units run.
    """

    def __init__(
        self,
        width: int,
        score: UnitScore,
        units_of: Callable[[Tensor], Tensor],
        given: Tensor | None = None,
    ) -> None:
        """Start before the first token of a context.

        Args:
            width: Tokens per window.
            score: What sets are chosen by.
            units_of: x (n, d_model) -> h (n, n_units), all units.
            given: (n_windows, n_units) bool, the sets of the windows of one row, known beforehand;
                None chooses each on the window before, the first being dense.
        """
        self._width, self._score, self._units_of, self._given = width, score, units_of, given
        self.restart()

    def restart(self) -> None:
        """Go to the start of a new context."""
        self._number = -1
        self._filled = self._width
        self.kept: Tensor | None = None
        self._units: Tensor | None = None
        self._sums: Tensor | None = None
        self._waiting: list[Tensor] = []

    @property
    def full(self) -> bool:
        """Whether the next token opens another window."""
        return self._filled == self._width

    @property
    def units(self) -> Tensor:
        """The set that holds, of the first row: (k,) int64, ascending."""
        if self._units is None:
            assert self.kept is not None
            self._units = self.kept[0].nonzero()[:, 0]
        return self._units

    def turn(self) -> None:
        """Close the window and choose the set of the next."""
        self._number += 1
        self._filled = 0
        self._units = None
        if self._given is not None:
            self.kept = self._given[self._number][None]
            return
        if self._waiting:
            self._add(self._units_of(torch.cat(self._waiting))[None])
            self._waiting.clear()
        if self._sums is not None:
            self.kept = top_mask(self._sums / self._width, self._score.k)
            self._sums = None

    def add_input(self, x: Tensor) -> None:
        """Count a token of the window by the block's input: (1, d_model)."""
        self._filled += 1
        if self._given is None:
            self._waiting.append(x)

    def mask(self, h: Tensor) -> Tensor:
        """Count tokens by all their units, (batch, tokens, n_units); windows turn as they fill.

        Returns:
            Which units each token keeps: (batch, tokens, n_units) bool, or (1, tokens, n_units)
            where sets are given.
        """
        masks, start = [], 0
        while start < h.shape[1]:
            if self.full:
                self.turn()
            piece = h[:, start : start + self._width - self._filled]
            start += piece.shape[1]
            self._filled += piece.shape[1]
            if self._given is None:
                self._add(piece)
            if self.kept is None:
                masks.append(torch.ones_like(piece, dtype=torch.bool))
            else:
                masks.append(self.kept[:, None].expand(-1, piece.shape[1], -1))
        return torch.cat(masks, dim=1)

    def _add(self, h: Tensor) -> None:
        sums = self._score(h).sum(dim=1)
        self._sums = sums if self._sums is None else self._sums + sums

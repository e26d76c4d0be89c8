"""The running window of a context: what its tokens add up to, and the set that it holds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from keepset.decode.score import UnitScore
from keepset.rules.masks import top_mask


class RunningWindow:
    """The window that the newest tokens of a context are in.

    Its set is chosen on the mean score of *every* unit over the window before; that of the first
    window on the first token of the text, which runs dense. So does a BOS token before it, which is
    in no window. Of a token that ran with kept units alone only the block's input is known: it
    waits, and its units are computed at the end of the window.

    Attributes:
        kept: (batch, n_units) bool, the set that holds; None before the text.
    """

    def __init__(
        self,
        width: int,
        score: UnitScore,
        units_of: Callable[[Tensor], Tensor],
        given: Tensor | None = None,
        *,
        n_bos: int = 0,
    ) -> None:
        """Start before the first token of a context.

        Args:
            width: Tokens per window.
            score: What sets are chosen by.
            units_of: x (n, d_model) -> h (n, n_units), all units.
            given: (n_windows, n_units) bool, the sets of the windows of one row, known beforehand;
                None chooses them.
            n_bos: Tokens of the context before the text: 1 where it opens with a BOS token.
        """
        self._width, self._score, self._units_of, self._given = width, score, units_of, given
        self._n_bos = n_bos
        self.restart()

    def restart(self) -> None:
        """Go to the start of a new context."""
        self._opens = True
        self._bos_left = self._n_bos
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
            Which units each token keeps: (batch, tokens, n_units) bool.
        """
        start = min(self._bos_left, h.shape[1])
        self._bos_left -= start
        masks = [torch.ones_like(h[:, :start], dtype=torch.bool)]
        while start < h.shape[1]:
            if self.full:
                self.turn()
            kept = self.kept
            piece = h[:, start : start + (1 if kept is None else self._width - self._filled)]
            start += piece.shape[1]
            self._filled += piece.shape[1]
            if kept is None:
                self.kept = top_mask(self._add(piece), self._score.k)
                masks.append(torch.ones_like(piece, dtype=torch.bool))
                continue
            if self._given is None:
                self._add(piece)
            masks.append(kept[:, None].expand(len(h), piece.shape[1], -1))
        mask = torch.cat(masks, dim=1)
        if self._opens:
            mask[:, 0] = True
        self._opens = False
        return mask

    def _add(self, h: Tensor) -> Tensor:
        sums = self._score(h).sum(dim=1)
        self._sums = sums if self._sums is None else self._sums + sums
        return self._sums

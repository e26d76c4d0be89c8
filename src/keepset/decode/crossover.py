"""Which path of a windowed rule is the fastest: its tokens and its change of sets together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from keepset.decode.block import PLAIN
from keepset.decode.kept import KeptBlock
from keepset.decode.whole import uncounted
from keepset.kernels import dispatch
from keepset.kernels.clock import Candidate, taking_turns
from keepset.kernels.selection import TRITON_FFN, Selection
from keepset.rules.rule import Rule

HELD = "held"
"""The path that copies the weights of kept units together, once per window."""

_TURNS = {HELD: "turn", TRITON_FFN: "turn in place"}
"""What the end of a window costs a path, where that is more than the choice of a set."""


class Crossover:
    """Chooses the path of windows; timed once per shape, on the model's own `blocks` in turn."""

    def __init__(self, rule: Rule, given: bool, paths: Counter[str], selection: Selection) -> None:
        """`given`: sets are known beforehand. `paths` does not count what runs to be timed."""
        self.blocks: list[KeptBlock] = []
        self._width, self._chosen_by = int(rule.window), "given" if given else rule.score
        self.paths, self._selection = paths, selection
        self._path_of: dict[torch.Size, str] = {}

    def path(self, block: KeptBlock, x: Tensor, kept: Tensor) -> str:
        """The path that is fastest over a whole window: `PLAIN`, `HELD` or `TRITON_FFN`.

        x (1, d_model) is the input of `block`, and `kept` (1, n_units) the set that holds.
        """
        if block.rows.shape not in self._path_of:
            with uncounted(self.paths):
                self._path_of[block.rows.shape] = self._fastest(block, x, kept)
        return self._path_of[block.rows.shape]

    def _fastest(self, block: KeptBlock, x: Tensor, kept: Tensor) -> str:
        candidates = self._candidates(block, x, kept)
        outputs = {name: run for name, run in candidates.items() if name not in _TURNS.values()}
        paths = self._selection.working(outputs, {TRITON_FFN})
        if (name := self._selection.forced_among(paths)) is not None:
            return name
        turns = [_TURNS[name] for name in paths if name in _TURNS]
        shape = "x".join(map(str, block.rows.shape))
        share = f"kept={block.score.k / block.site.n_units:.2g}"
        key = ("window", shape, f"W={self._width}", self._chosen_by, share, *dispatch.setting(x))
        took = self._selection.times(key, {name: candidates[name] for name in (*paths, *turns)})
        return min(
            paths, key=lambda name: self._width * took[name] + took.get(_TURNS.get(name, ""), 0)
        )

    def _candidates(self, block: KeptBlock, x: Tensor, kept: Tensor) -> dict[str, Candidate]:
        """Calls that run one token, and one change of sets, by every path.

        Rounds take the blocks of the shape in turn, all with the same set.
        """
        alike = [other for other in self.blocks if other.rows.shape == block.rows.shape]
        units = kept[0].nonzero()[:, 0]
        slices = {other: other.slices(units) for other in alike}
        window = x.expand(self._width, -1).contiguous()

        def choose(other: KeptBlock) -> None:
            if self._chosen_by != "given":
                other.choose(window)

        def choose_and_copy(other: KeptBlock) -> None:
            choose(other)
            other.slices(units)

        calls: dict[str, Callable[[KeptBlock], Any]] = {
            PLAIN: lambda other: other.plain(x, units),
            HELD: lambda other: other.by_slices(x, slices[other]),
            _TURNS[HELD]: choose_and_copy,
        }
        if self._selection.may_use_triton("ffn", x.device):
            calls[TRITON_FFN] = lambda other: other.by_kernel(x, units)
            calls[_TURNS[TRITON_FFN]] = choose
        return {name: taking_turns(alike, call) for name, call in calls.items()}

"""A feed-forward block computed by one kernel inside its own model, where that is faster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor

from keepset.decode.block import PLAIN, StandIn, ffn_weights, units_of
from keepset.decode.position import Position
from keepset.hold.slices import Forward
from keepset.kernels import dispatch
from keepset.kernels.clock import taking_turns
from keepset.kernels.selection import TRITON_FFN, Selection
from keepset.kernels.weights import MAX_ROWS, FfnWeights
from keepset.sites.ffn import Site

Kernel = Callable[[Tensor, FfnWeights], Tensor]
"""(x (rows, d_model), weights) -> (rows, d_model)."""


class WholeBlock(StandIn):
    """A block that a kernel computes where that is faster, up to `MAX_ROWS` tokens."""

    def __init__(
        self, site: Site, plain: Forward, kernel: Kernel, rows: Tensor, blocks: WholeBlocks
    ) -> None:
        """Enter the block of `site` in `blocks`, those of the model.

        `plain` (h (..., units) -> output) is what the kernel stands in for; `rows` (n, d_model)
        are the neuron-major weights of the down projection.
        """
        super().__init__(site)
        self.rows = rows
        self._plain, self._kernel, self._blocks = plain, kernel, blocks
        self._ffn: FfnWeights | None = None
        blocks.members.append(self)

    def answer(self, x: Tensor) -> Tensor | None:
        """The kernel's output, where that path is taken."""
        position = self._blocks.position
        if not self.separable or len(x) > MAX_ROWS or (position is not None and position.opens):
            return None
        if self._blocks.path(self, x) != TRITON_FFN:
            return None
        self._blocks.paths[TRITON_FFN] += len(x)
        return self.by_kernel(x)

    def down(self, h: Tensor) -> Tensor:
        """What the kernel stands in for."""
        if not self.separable:
            reason = f"{self.site.name} computes more than its layout says"
            self._blocks.selection.refuse(TRITON_FFN, reason)
        return self._plain(h)

    def by_kernel(self, x: Tensor) -> Tensor:
        """The block's output for x (rows, d_model), by the kernel."""
        if self._ffn is None:
            self._ffn = ffn_weights(self.site, self.rows)
        return self._kernel(x, self._ffn)

    def by_torch(self, x: Tensor) -> Tensor:
        """The same by torch, outside a pass of the model."""
        return self._plain(units_of(self.site, x))


class WholeBlocks:
    """The whole blocks of a model, and which path each of their sizes takes.

    Attributes:
        paths: Counts tokens x sites by path.
        selection: Which kernels may run.
        position: Where the running pass stands, if it matters.
        members: All of them.
    """

    def __init__(
        self,
        label: str,
        paths: Counter[str],
        selection: Selection,
        position: Position | None = None,
    ) -> None:
        """Start without members.

        Args:
            label: What the blocks do, for the record of times.
            paths: See above.
            selection: See above.
            position: Where the running pass stands; kernels leave alone those that begin with the
                first token of a context. None where blocks stand in for later passes only.
        """
        self.paths, self.selection, self.position = paths, selection, position
        self.members: list[WholeBlock] = []
        self._label = label
        self._path_of: dict[tuple[int, ...], str] = {}

    def path(self, block: WholeBlock, x: Tensor) -> str:
        """`TRITON_FFN` or `PLAIN`, whichever is faster for x (rows, d_model); timed once."""
        key = (*block.rows.shape, 1 << (len(x) - 1).bit_length())
        if key not in self._path_of:
            self._path_of[key] = self._fastest(block, x, key)
        return self._path_of[key]

    def _fastest(self, block: WholeBlock, x: Tensor, sizes: tuple[int, ...]) -> str:
        alike = [other for other in self.members if other.rows.shape == block.rows.shape]
        n, d, rows = sizes
        key = (self._label, f"{n}x{d}", f"rows={rows}", *dispatch.setting(x))
        calls = {PLAIN: WholeBlock.by_torch, TRITON_FFN: WholeBlock.by_kernel}
        runs = {name: taking_turns(alike, partial(call, x=x)) for name, call in calls.items()}
        with uncounted(self.paths):
            return self.selection.fastest_ffn(key, runs)


@contextmanager
def uncounted(paths: Counter[str]) -> Iterator[None]:
    """Leave out of `paths` what runs only to be timed."""
    before = paths.copy()
    try:
        yield
    finally:
        paths.clear()
        paths.update(before)

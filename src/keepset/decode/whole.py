"""A feed-forward block computed by one kernel inside its own model, where that is faster."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from keepset.decode.block import (
    PLAIN,
    Bypass,
    Forward,
    computes,
    ffn_weights,
    separable,
    standing_forward,
    units_of,
)
from keepset.kernels import dispatch
from keepset.kernels.selection import TRITON_FFN, Selection
from keepset.kernels.weights import MAX_ROWS, FfnWeights
from keepset.sites import Site

Kernel = Callable[[Tensor, FfnWeights], Tensor]
"""(x (rows, d_model), weights) -> (rows, d_model)."""


class WholeBlock:
    """A block that a kernel computes where that is faster, up to `MAX_ROWS` tokens."""

    def __init__(self, site: Site, plain: Forward, kernel: Kernel, rows: Tensor) -> None:
        """Prepare a site.

        Args:
            site: The site.
            plain: (..., units) h -> output, what the kernel stands in for.
            kernel: Computes the whole block.
            rows: (n, d_model) neuron-major weights of the down projection.
        """
        self.site, self.plain, self.rows = site, plain, rows
        self._kernel = kernel
        self._ffn: FfnWeights | None = None

    def by_kernel(self, x: Tensor) -> Tensor:
        """The block's output for x (rows, d_model), by the kernel."""
        if self._ffn is None:
            self._ffn = ffn_weights(self.site, self.rows)
        return self._kernel(x, self._ffn)

    def by_torch(self, x: Tensor) -> Tensor:
        """The same by torch, outside the model."""
        return self.plain(units_of(self.site, x))


class WholeBlocks:
    """The whole blocks of a model, and which path each of their sizes takes."""

    def __init__(self, label: str, paths: Counter[str], selection: Selection) -> None:
        """Start without any.

        Args:
            label: What the blocks do, for the record of times.
            paths: Counts tokens x sites by path.
            selection: Which kernels may run.
        """
        self._label, self._paths, self._selection = label, paths, selection
        self._blocks: list[WholeBlock] = []
        self._path_of: dict[tuple[int, ...], str] = {}

    @contextmanager
    def standing_in(self, block: WholeBlock) -> Iterator[None]:
        """Stand in for the projections of the block's site."""
        self._blocks.append(block)
        calls = _Calls(block, self)
        with ExitStack() as stack:
            stack.enter_context(calls.bypass.standing_in())
            for projection in block.site.up:
                hook = projection.module.register_forward_pre_hook(calls.before_up)
                stack.callback(hook.remove)
            stack.enter_context(standing_forward(block.site.down, calls.down))
            yield

    def answer(self, block: WholeBlock, x: Tensor) -> Tensor | None:
        """The kernel's output for x (tokens, d_model); None where torch is to run."""
        if len(x) > MAX_ROWS or self._path(block, x) != TRITON_FFN:
            return None
        self._paths[TRITON_FFN] += len(x)
        return block.by_kernel(x)

    def refuse(self, block: WholeBlock) -> None:
        """Note that the model computes something else than `units_of`."""
        self._selection.refuse(TRITON_FFN, f"{block.site.name} computes more than its layout says")

    def _path(self, block: WholeBlock, x: Tensor) -> str:
        key = (*block.rows.shape, 1 << (len(x) - 1).bit_length())
        if key not in self._path_of:
            self._path_of[key] = self._fastest(block, x, key)
        return self._path_of[key]

    def _fastest(self, block: WholeBlock, x: Tensor, sizes: tuple[int, ...]) -> str:
        """`TRITON_FFN` or `PLAIN`, whichever is faster; rounds take the blocks in turn."""
        alike = [other for other in self._blocks if other.rows.shape == block.rows.shape]
        n, d, rows = sizes
        key = (self._label, f"{n}x{d}", f"rows={rows}", *dispatch.setting(x))
        candidates = {
            PLAIN: lambda number: alike[number % len(alike)].by_torch(x),
            TRITON_FFN: lambda number: alike[number % len(alike)].by_kernel(x),
        }
        with uncounted(self._paths):
            return self._selection.fastest_ffn(key, candidates)


class _Calls:
    """What stands in for the projections of one block."""

    def __init__(self, block: WholeBlock, blocks: WholeBlocks) -> None:
        self.bypass = Bypass(block.site)
        self._block, self._blocks = block, blocks
        self._x: Tensor | None = None
        # None: it is not known yet whether units can be computed outside the model.
        self._separable: bool | None = None if separable(block.site) else False

    def before_up(self, _: Any, args: tuple[Any, ...]) -> None:
        """Pre-hook of the projections that make h."""
        x = args[0]
        if x is self._x:  # the other projection of the same call
            return
        self.bypass.take()
        self._x = x
        if self._separable:
            y = self._blocks.answer(self._block, x.reshape(-1, x.shape[-1]))
            if y is not None:
                self.bypass.give(y.view(*x.shape[:-1], -1))

    def down(self, h: Tensor) -> Tensor:
        """Stands in for the forward of the down projection."""
        answer, x, self._x = self.bypass.take(), self._x, None
        if answer is not None:
            return answer
        if self._separable is None and x is not None:
            self._separable = computes(self._block.site, x.reshape(-1, x.shape[-1])[-1:], h)
            if not self._separable:
                self._blocks.refuse(self._block)
        return self._block.plain(h)


@contextmanager
def uncounted(paths: Counter[str]) -> Iterator[None]:
    """Leave out of `paths` what runs only to be timed."""
    before = paths.copy()
    try:
        yield
    finally:
        paths.clear()
        paths.update(before)

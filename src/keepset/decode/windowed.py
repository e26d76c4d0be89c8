"""Causal windows: the set is known before the token comes, so gate, up and down are all skipped.

The next set is chosen on the mean size of *every* unit over the running window, and units that are
left out have not been computed. They are computed in one go: the inputs of the block are kept, and
at the end of the window gate and up run densely on all W of them at once (`RunningWindow`). That
reads the dense weights once in W tokens instead of at every token, and the set is exactly that of
the definition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from keepset.decode.block import (
    PLAIN,
    Bypass,
    computes,
    separable,
    standing_forward,
    units_of,
)
from keepset.decode.crossover import Crossover
from keepset.decode.down import SparseDown
from keepset.decode.kept import KeptBlock
from keepset.decode.position import Position
from keepset.decode.score import UnitScore
from keepset.decode.window import RunningWindow
from keepset.errors import ConfigError
from keepset.kernels.selection import TRITON_FFN, Selection
from keepset.rules.rule import Rule
from keepset.sites import Site


@contextmanager
def running_windows(
    model: nn.Module,
    sites: Sequence[Site],
    rule: Rule,
    given: Mapping[str, Tensor] | None,
    paths: Counter[str],
    selection: Selection,
) -> Iterator[None]:
    """Hold a windowed rule on `sites`.

    Args:
        model: The model, whose forward passes are counted.
        sites: Its sites; one runs masked where its units cannot be sliced.
        rule: The rule.
        given: Site key -> sets that are known beforehand, as in `RunningWindow`.
        paths: Counts tokens x sites by path.
        selection: Which kernels may run.

    Raises:
        ConfigError: a block is shared over depths.
    """
    sparse = SparseDown(sites, paths, selection)
    crossover = Crossover(rule, given is not None, paths, selection)
    position = Position()
    with ExitStack() as stack:
        stack.enter_context(position.following(model))
        for site in sites:
            if site.n_calls > 1:
                raise ConfigError(
                    f"{site.name}: a block shared over depths cannot be decoded in windows; use a"
                    " dynamic or a static rule"
                )
            score = UnitScore(site, rule)
            block = KeptBlock(site, score, sparse)
            sets = None if given is None else given[site.key]
            window = RunningWindow(int(rule.window), score, partial(units_of, site), sets)
            crossover.blocks.append(block)
            calls = _Calls(block, window, crossover, position, paths)
            silent = selection.triton_ffn(block.rows.device)
            stack.enter_context(calls.standing_in(silent))
        yield


class _Calls:
    """What stands in for the projections of one site."""

    def __init__(
        self,
        block: KeptBlock,
        window: RunningWindow,
        crossover: Crossover,
        position: Position,
        paths: Counter[str],
    ) -> None:
        self._block, self._window, self._crossover = block, window, crossover
        self._position, self._paths = position, paths
        self._bypass = Bypass(block.site)
        # None: it is not known yet whether units can be computed outside the model.
        self._separable: bool | None = None if separable(block.site) else False
        self._pass = -1
        self._last_x: Tensor | None = None

    @contextmanager
    def standing_in(self, kernels: bool) -> Iterator[None]:
        """Hold the rule at the site; `kernels`: whether they may compute the whole block."""
        site = self._block.site
        with ExitStack() as stack:
            if kernels:
                stack.enter_context(self._bypass.standing_in())
            for projection in site.up:
                hook = projection.module.register_forward_pre_hook(self._before_up)
                stack.callback(hook.remove)
            stack.enter_context(standing_forward(site.down, self._down))
            stack.callback(self._block.release)
            yield

    def _before_up(self, _: Any, args: tuple[Any, ...]) -> None:
        """Pre-hook of the projections that make h: choose the weights for this pass."""
        if not self._first_call():
            return
        self._bypass.take()
        x = args[0].reshape(-1, args[0].shape[-1])
        if not (self._separable and self._position.one_token):
            self._last_x = x[-1:]
            self._block.release()
            return
        if self._window.full:
            self._block.release()  # the window's last tokens are scored with the dense weights
            self._window.turn()
        kept = self._window.kept
        path = PLAIN if kept is None else self._crossover.path(self._block, x, kept)
        if path == PLAIN:
            self._block.release()
            return
        if path == TRITON_FFN:
            y = self._block.by_kernel(x, self._window.units)
            self._bypass.give(y.view(*args[0].shape[:-1], -1))
        else:
            self._block.hold(self._window.units)
        self._paths[path] += 1
        self._window.add_input(x)

    def _down(self, h: Tensor) -> Tensor:
        """Stands in for the forward of the down projection."""
        self._first_call()
        if (answer := self._bypass.take()) is not None:
            return answer
        if self._block.held:
            return self._block.dense_down(h)
        site, position = self._block.site, self._position
        if self._separable is None:
            assert self._last_x is not None
            self._separable = computes(site, self._last_x, h)
        flat = h.reshape(-1, site.n_units)
        tokens = flat.view(position.batch, position.tokens, site.n_units)
        kept = self._window.mask(tokens).expand_as(tokens).reshape(flat.shape)
        if position.tokens == 1 and position.start and self._window.kept is not None:
            one_set = self._window.units if len(flat) == 1 else kept
            return self._block.sparse_down(flat, one_set).view(*h.shape[:-1], -1)
        return self._block.dense_down((flat * kept).view(h.shape))

    def _first_call(self) -> bool:
        """Whether this is the site's first call in the running forward pass."""
        if self._pass == self._position.passes:
            return False
        self._pass = self._position.passes
        if self._position.start == 0:
            self._block.release()
            self._window.restart()
        return True

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

from torch import Tensor, nn

from keepset.decode.block import PLAIN, StandIn, units_of
from keepset.decode.crossover import Crossover
from keepset.decode.down import SparseDown
from keepset.decode.kept import KeptBlock
from keepset.decode.position import Position
from keepset.decode.score import UnitScore
from keepset.decode.window import RunningWindow
from keepset.errors import ConfigError
from keepset.kernels.selection import TRITON_FFN, Selection
from keepset.rules.rule import Rule
from keepset.sites.ffn import Site


@contextmanager
def running_windows(
    model: nn.Module,
    sites: Sequence[Site],
    rule: Rule,
    given: Mapping[str, Tensor] | None,
    paths: Counter[str],
    selection: Selection,
    position: Position,
) -> Iterator[None]:
    """Hold a windowed rule on `sites`; one runs masked where its units cannot be sliced.

    Arguments as in `sparse_decoding`; `paths` counts tokens x sites by path, and `position` will
    follow the passes of the model.

    Raises:
        ConfigError: a block is shared over depths.
    """
    sparse = SparseDown(sites, paths, selection)
    crossover = Crossover(rule, given is not None, paths, selection)
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
            window = RunningWindow(
                int(rule.window), score, partial(units_of, site), sets, n_bos=position.n_bos
            )
            crossover.blocks.append(block)
            windowed = _WindowedSite(block, window, crossover, position)
            stack.enter_context(windowed.standing_in())
            stack.callback(block.release)
        yield


class _WindowedSite(StandIn):
    """One site under the rule: chooses, in each pass, the path and the weights that run."""

    def __init__(
        self, block: KeptBlock, window: RunningWindow, crossover: Crossover, position: Position
    ) -> None:
        super().__init__(block.site)
        self._block, self._window = block, window
        self._crossover, self._position = crossover, position
        self._pass = -1

    def begins(self, _: Tensor) -> bool:
        """Whether this is the site's first call in the running forward pass."""
        if self._pass == self._position.passes:
            return False
        self._pass = self._position.passes
        if self._position.start == 0:
            self._block.release()
            self._window.restart()
        return True

    def answer(self, x: Tensor) -> Tensor | None:
        """Put the weights of this pass in place, or let the kernel compute the block."""
        if not (self.separable and self._position.one_token):
            self._block.release()
            return None
        if self._window.full:
            self._block.release()  # the window's tokens are scored with the dense weights
            self._window.turn()
        kept = self._window.kept
        path = PLAIN if kept is None else self._crossover.path(self._block, x, kept)
        if path == PLAIN:
            self._block.release()
            return None
        self._crossover.paths[path] += 1
        self._window.add_input(x)
        if path == TRITON_FFN:
            return self._block.by_kernel(x, self._window.units)
        self._block.hold(self._window.units)
        return None

    def down(self, h: Tensor) -> Tensor:
        """Mask h, or leave it alone where only kept units were computed."""
        self.begins(h)  # where what makes h is not known, nothing came before
        if self._block.held:
            return self._block.dense_down(h)
        position, n_units = self._position, self.site.n_units
        flat = h.reshape(-1, n_units)
        tokens = flat.view(position.batch, position.tokens, n_units)
        # The first token of the text runs dense, also where it is new after the BOS token.
        is_chosen = self._window.kept is not None
        kept = self._window.mask(tokens).view(flat.shape)
        if position.tokens == 1 and position.start and is_chosen:
            one_set = self._window.units if len(flat) == 1 else kept
            return self._block.sparse_down(flat, one_set).view(*h.shape[:-1], -1)
        return self._block.dense_down((flat * kept).view(h.shape))

"""Causal windows: the set is known before the token comes, so gate, up and down are all skipped.

The next set is chosen on the mean size of *every* unit over the running window, and units that are
left out have not been computed. They are caught up on in one go: the inputs of the block are kept,
and at the end of the window gate and up run densely on all W of them at once. That reads the dense
weights once in W tokens instead of at every token, and the set is exactly that of the definition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from keepset.decode.dynamic import SparseDown
from keepset.decode.position import Position
from keepset.decode.whole import (
    PLAIN,
    Block,
    Forward,
    agrees,
    can_be_apart,
    ffn_weights,
    standing_forward,
    uncounted,
    units_of,
)
from keepset.hold.inputs import output_norms, slice_up, swapped
from keepset.kernels import calibrate, choice, dispatch
from keepset.kernels.choice import TRITON_FFN
from keepset.kernels.weights import FfnWeights
from keepset.rules.masks import top_mask
from keepset.rules.rule import Rule, n_kept
from keepset.rules.scores import token_score
from keepset.sites import Site

HELD = "held"


class Shared:
    """What the held sites of a model have in common."""

    def __init__(self, rule: Rule, position: Position, sparse: SparseDown) -> None:
        self.rule = rule
        self.width = int(rule.window)
        self.position = position
        self.sparse = sparse
        self.paths: Counter[str] = Counter()
        self.sites: list[HeldSite] = []
        self.modes: dict[torch.Size, str] = {}

    def alike(self, site: Site) -> list[HeldSite]:
        """The held sites of the same sizes."""
        shape = self.sparse.rows(site).shape
        return [at for at in self.sites if self.sparse.rows(at.site).shape == shape]


class HeldSite:
    """One site under a windowed rule: its running window, its set, and the weights in place."""

    def __init__(self, site: Site, shared: Shared, given: Tensor | None = None) -> None:
        """Prepare a site.

        Args:
            site: A site; it runs masked where its units cannot be sliced.
            shared: The rule and what goes with it.
            given: (n_windows, n_units) bool, the sets of the windows of one row, known beforehand;
                None chooses each on the window before, the first being dense.
        """
        self.site, self._shared, self._given = site, shared, given
        self._kept_units = n_kept(site.n_units, shared.rule.sparsity)
        self._norms = output_norms(site) if shared.rule.score == "impact" else None
        self._dense: Forward = site.down.forward
        # None: not yet known whether units can be computed apart from the model's forward pass.
        self._apart: bool | None = None if can_be_apart(site) else False
        self._block = Block(site)
        self._ffn: FfnWeights | None = None
        self._weights = ExitStack()
        self._held = False
        self._pass = -1
        self._x: Tensor | None = None
        self._reset()

    def _reset(self) -> None:
        self.release()
        self._window = -1
        self._filled = self._shared.width
        self._kept: Tensor | None = None
        self._units: Tensor | None = None
        self._sums: Tensor | None = None
        self._pending: list[Tensor] = []

    def release(self) -> None:
        """Put the dense weights in place."""
        self._weights.close()
        self._held = False

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Hold the rule at the site."""
        with ExitStack() as stack:
            if choice.ffn_kernels(self._shared.sparse.rows(self.site).device):
                stack.enter_context(self._block.standing_in())
            for projection in self.site.up:
                module: nn.Module = projection.module
                stack.callback(module.register_forward_pre_hook(self.before_up).remove)
            stack.enter_context(standing_forward(self.site.down, self.down))
            stack.callback(self.release)
            yield

    # -- the two places of a forward pass

    def before_up(self, _: Any, args: tuple[Any, ...]) -> None:
        """Pre-hook of the projections that make h: choose the weights for this pass."""
        position = self._shared.position
        if not self._begins():
            return
        self._block.take()
        x = args[0].reshape(-1, args[0].shape[-1])
        if not (position.start and position.batch == position.tokens == 1 and self._apart):
            self._x = x[-1:]
            self.release()
            return
        if self._filled == self._shared.width:
            self._turn()
        mode = PLAIN if self._kept is None else self._mode(x)
        if mode == PLAIN:
            self.release()
            return
        if mode == TRITON_FFN:
            self._block.give(self._kernel(x, self._kept_indices()).view(*args[0].shape[:-1], -1))
        elif not self._held:
            self._install()
        self._shared.paths[mode] += 1
        self._filled += 1
        if self._given is None:
            self._pending.append(x)

    def down(self, h: Tensor) -> Tensor:
        """Stands in for the forward of the down projection."""
        self._begins()
        if (answer := self._block.take()) is not None:
            return answer
        if self._held:
            return self._dense(h)
        position, n = self._shared.position, self.site.n_units
        if self._apart is None:
            assert self._x is not None
            self._apart = agrees(self.site, self._x, h)
        full = h.reshape(position.batch, position.tokens, n)
        mask = torch.cat([self._advance(piece) for piece in self._pieces(full)], dim=1)
        flat, kept = h.reshape(-1, n), mask.expand(*full.shape[:2], n).reshape(-1, n)
        if position.tokens == 1 and position.start and self._kept is not None:
            shared_set = self._kept_indices() if len(flat) == 1 else kept
            return self._shared.sparse(self.site, flat, shared_set).view(*h.shape[:-1], -1)
        return self._dense((flat * kept).view(h.shape))

    def _begins(self) -> bool:
        """Whether the site is reached for the first time in this forward pass."""
        position = self._shared.position
        if self._pass == position.passes:
            return False
        self._pass = position.passes
        if position.start == 0:
            self._reset()
        return True

    # -- the running window

    def _pieces(self, h: Tensor) -> list[Tensor]:
        """h (batch, tokens, n) cut where windows end."""
        first = self._shared.width - self._filled
        width, tokens = self._shared.width, h.shape[1]
        sizes = [min(first, tokens)] if first else []
        while (left := tokens - sum(sizes)) > 0:
            sizes.append(min(width, left))
        return list(h.split(sizes, dim=1))

    def _advance(self, piece: Tensor) -> Tensor:
        """Add tokens of one window, (batch, t, n); returns their mask (batch, t, n)."""
        if self._filled == self._shared.width:
            self._turn()
        self._filled += piece.shape[1]
        if self._given is None:
            self._add(piece)
        if self._kept is None:
            return torch.ones_like(piece, dtype=torch.bool)
        return self._kept[:, None].expand(-1, piece.shape[1], -1)

    def _add(self, h: Tensor) -> None:
        summed = token_score(self._shared.rule.score, h, self._norms, None).sum(dim=1)
        self._sums = summed if self._sums is None else self._sums + summed

    def _turn(self) -> None:
        """Close the window and choose the set of the next."""
        self.release()
        self._window += 1
        self._filled = 0
        self._units = None
        if self._given is not None:
            self._kept = self._given[self._window][None]
            return
        if self._pending:
            self._add(units_of(self.site, torch.cat(self._pending))[None])
            self._pending.clear()
        if self._sums is not None:
            self._kept = top_mask(self._sums / self._shared.width, self._kept_units)
            self._sums = None

    # -- weights of the kept units

    def _kept_indices(self) -> Tensor:
        """The running window's set, (k,) ascending."""
        if self._units is None:
            assert self._kept is not None
            self._units = self._kept[0].nonzero()[:, 0]
        return self._units

    def _kernel(self, x: Tensor, units: Tensor) -> Tensor:
        """The block of `units` alone for x (1, d_model), reading their rows where they are."""
        from keepset.kernels.triton_ffn import shared_set_decode

        if self._ffn is None:
            self._ffn = ffn_weights(self.site, self._shared.sparse.rows(self.site))
        return shared_set_decode(x, self._ffn, units)

    def _install(self) -> None:
        for module, tensors in self._slices(self._kept_indices()):
            self._weights.enter_context(swapped(module, tensors))
        self._held = True

    def _slices(self, units: Tensor) -> list[tuple[Any, dict[str, Tensor]]]:
        down = self._shared.sparse.rows(self.site).index_select(0, units)
        weight = down if isinstance(self.site.down, Conv1D) else down.T
        ups = [(p.module, slice_up(p, units)) for p in self.site.up]
        return [*ups, (self.site.down, {"weight": weight})]

    # -- the crossover

    def _mode(self, x: Tensor) -> str:
        """The path that is fastest over a whole window; measured once per shape."""
        modes, shape = self._shared.modes, self._shared.sparse.rows(self.site).shape
        if shape not in modes:
            with uncounted(self._shared.paths):
                modes[shape] = self._measure(x)
        return modes[shape]

    def _measure(self, x: Tensor) -> str:
        width = self._shared.width
        rule = self._shared.rule
        shape = "x".join(map(str, self._shared.sparse.rows(self.site).shape))
        kept = f"kept={self._kept_units / self.site.n_units:.2g}"
        given = "given" if self._given is not None else rule.score
        key = ("window", shape, f"W={width}", given, kept, *dispatch.setting(x))
        assert self._kept is not None
        candidates = _candidates(self._shared.alike(self.site), x, self._kept)
        paths = choice.working(
            {name: run for name, run in candidates.items() if name not in _TURNS.values()},
            {TRITON_FFN},
        )
        if (name := calibrate.forced(paths)) is not None:
            return name
        timed = {name: candidates[name] for name in (*paths, *_turns(paths))}
        took = calibrate.times(key, timed)
        return min(paths, key=lambda name: width * took[name] + took.get(_TURNS.get(name, ""), 0))


_TURNS = {HELD: "turn", TRITON_FFN: "turn in place"}
"""What the end of a window costs a path, where that is more than the choice of a set."""


def _turns(paths: Iterable[str]) -> list[str]:
    return [_TURNS[name] for name in paths if name in _TURNS]


def _candidates(
    sites: Sequence[HeldSite], x: Tensor, kept: Tensor
) -> dict[str, calibrate.Candidate]:
    """A token by every path, and what the turn of a window costs it.

    Rounds take the sites in turn, all with the set `kept` (1, n_units).
    """
    units = kept[0].nonzero()[:, 0]
    slices = [held._slices(units) for held in sites]
    many = x.expand(sites[0]._shared.width, -1).contiguous()

    def plain(at: int) -> Tensor:
        held = sites[at % len(sites)]
        return held._shared.sparse(held.site, units_of(held.site, x), units)

    def kept_only(at: int) -> Tensor:
        held = sites[at % len(sites)]
        with ExitStack() as stack:
            for module, tensors in slices[at % len(sites)]:
                stack.enter_context(swapped(module, tensors))
            return held._dense(units_of(held.site, x))

    def choose(at: int) -> None:
        held = sites[at % len(sites)]
        if held._given is None:
            h = units_of(held.site, many)
            score = token_score(held._shared.rule.score, h, held._norms, None)
            top_mask(score.mean(dim=0, keepdim=True), held._kept_units)

    def turn(at: int) -> None:
        choose(at)
        sites[at % len(sites)]._slices(units)

    candidates: dict[str, calibrate.Candidate] = {PLAIN: plain, HELD: kept_only, "turn": turn}
    if choice.ffn_kernels(x.device):
        candidates[TRITON_FFN] = lambda at: sites[at % len(sites)]._kernel(x, units)
        candidates["turn in place"] = choose
    return candidates

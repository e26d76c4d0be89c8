"""Causal windows: the set is known before the token comes, so gate, up and down are all skipped.

The next set is chosen on the mean size of *every* unit over the running window, and units that are
left out have not been computed. They are caught up on in one go: the inputs of the block are kept,
and at the end of the window gate and up run densely on all W of them at once. That reads the dense
weights once in W tokens instead of at every token, and the set is exactly that of the definition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from transformers.activations import ACT2FN
from transformers.pytorch_utils import Conv1D

from keepset.decode.dynamic import DownForward, SparseDown
from keepset.decode.position import Position
from keepset.intervene import output_norms, slice_up, sliceable, swapped
from keepset.keep import Rule, n_kept, top_mask
from keepset.kernels import calibrate, dispatch
from keepset.scores import token_score
from keepset.sites import Site

HELD, PLAIN = "held", "plain"
# A wrong formula is wrong by much more; the running window's sums bear this rounding anyway.
_AGREES = {torch.float64: 1e-9, torch.float32: 1e-4}
_AGREES_LOW_PRECISION = 3e-2


def units_of(site: Site, x: Tensor) -> Tensor:
    """h of the block's inputs x (n, d_model), with the weights that are in place: (n, units)."""
    act = ACT2FN[site.activation]
    outs: list[Tensor] = []
    for projection in site.up:
        module: Any = projection.module
        # forward, not a call: hooks are for the tokens of a pass, and these have passed.
        outs += module.forward(x).chunk(len(projection.offsets), dim=-1)
    return act(outs[0]) * outs[1] if site.gated else act(outs[0])


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
        self._dense: DownForward = site.down.forward
        # None: not yet known whether units can be computed apart from the model's forward pass.
        known = site.activation in ACT2FN and sliceable(site)
        self._apart: bool | None = None if known else False
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
        self._sums: Tensor | None = None
        self._pending: list[Tensor] = []

    def release(self) -> None:
        """Put the dense weights in place."""
        self._weights.close()
        self._held = False

    # -- the two places of a forward pass

    def before_up(self, _: Any, args: tuple[Any, ...]) -> None:
        """Pre-hook of the projections that make h: choose the weights for this pass."""
        position = self._shared.position
        if not self._begins():
            return
        x = args[0].reshape(-1, args[0].shape[-1])
        if not (position.start and position.batch == position.tokens == 1 and self._apart):
            self._x = x[-1:]
            self.release()
            return
        if self._filled == self._shared.width:
            self._turn()
        if self._kept is None or self._mode(x) == PLAIN:
            self.release()
            return
        if not self._held:
            self._install()
        self._shared.paths[HELD] += 1
        self._filled += 1
        if self._given is None:
            self._pending.append(x)

    def down(self, h: Tensor) -> Tensor:
        """Stands in for the forward of the down projection."""
        self._begins()
        if self._held:
            return self._dense(h)
        position, n = self._shared.position, self.site.n_units
        if self._apart is None:
            self._apart = self._agrees(h)
        full = h.reshape(position.batch, position.tokens, n)
        mask = torch.cat([self._advance(piece) for piece in self._pieces(full)], dim=1)
        flat, kept = h.reshape(-1, n), mask.expand(*full.shape[:2], n).reshape(-1, n)
        if position.tokens == 1 and position.start and self._kept is not None:
            shared_set = self._kept[0].nonzero()[:, 0] if len(flat) == 1 else kept
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

    def _install(self) -> None:
        assert self._kept is not None
        for module, tensors in self._slices(self._kept[0].nonzero()[:, 0]):
            self._weights.enter_context(swapped(module, tensors))
        self._held = True

    def _slices(self, units: Tensor) -> list[tuple[Any, dict[str, Tensor]]]:
        down = self._shared.sparse.rows(self.site).index_select(0, units)
        weight = down if isinstance(self.site.down, Conv1D) else down.T
        ups = [(p.module, slice_up(p, units)) for p in self.site.up]
        return [*ups, (self.site.down, {"weight": weight})]

    def _agrees(self, h: Tensor) -> bool:
        """Whether `units_of` gives what the model itself computes."""
        assert self._x is not None
        seen = h.reshape(-1, self.site.n_units)[-1:].double()
        error = (units_of(self.site, self._x).double() - seen).norm()
        return bool(error <= _AGREES.get(h.dtype, _AGREES_LOW_PRECISION) * seen.norm())

    # -- the crossover

    def _mode(self, x: Tensor) -> str:
        """HELD or PLAIN, whichever is faster over a whole window; measured once per shape."""
        modes, shape = self._shared.modes, self._shared.sparse.rows(self.site).shape
        if shape not in modes:
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
        if (name := calibrate.forced(candidates)) is not None:
            return name
        took = calibrate.times(key, candidates)
        return HELD if took[HELD] * width + took["turn"] < took[PLAIN] * width else PLAIN


def _candidates(
    sites: Sequence[HeldSite], x: Tensor, kept: Tensor
) -> dict[str, calibrate.Candidate]:
    """A token with all units computed, a token with kept units only, and the turn of a window.

    Rounds take the sites in turn, all with the set `kept` (1, n_units).
    """
    units = kept[0].nonzero()[:, 0]
    slices = [held._slices(units) for held in sites]
    many = x.expand(sites[0]._shared.width, -1).contiguous()

    def plain(at: int) -> None:
        held = sites[at % len(sites)]
        held._shared.sparse(held.site, units_of(held.site, x), units)

    def kept_only(at: int) -> None:
        held = sites[at % len(sites)]
        with ExitStack() as stack:
            for module, tensors in slices[at % len(sites)]:
                stack.enter_context(swapped(module, tensors))
            held._dense(units_of(held.site, x))

    def turn(at: int) -> None:
        held = sites[at % len(sites)]
        if held._given is None:
            h = units_of(held.site, many)
            score = token_score(held._shared.rule.score, h, held._norms, None)
            top_mask(score.mean(dim=0, keepdim=True), held._kept_units)
        held._slices(units)

    return {PLAIN: plain, HELD: kept_only, "turn": turn}

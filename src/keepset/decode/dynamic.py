"""Dynamic rules: gate and up are dense, the down projection reads the kept rows only.

On a CPU one kernel call can choose a token's units and project them. On a GPU one kernel path can
stand in for the whole block: h stays on the device, its exact k best are found there, and nothing
waits (`WholeBlock`).

The size of h_j is known only once gate and up of unit j are computed, so an exact choice at every
token can skip nothing of them. What it skips is 1 - (share kept) of the down projection: a third of
a gated block, half of another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from keepset.decode.block import separable
from keepset.decode.down import SparseDown
from keepset.decode.position import Position
from keepset.decode.score import UnitScore
from keepset.decode.whole import Kernel, WholeBlock, WholeBlocks, uncounted
from keepset.hold.inputs import rules_run_by
from keepset.hold.slices import Forward, standing_forward
from keepset.kernels import dispatch
from keepset.kernels.clock import taking_turns
from keepset.kernels.selection import NUMBA, Selection
from keepset.kernels.torch_ffn import DOWN_PATHS
from keepset.kernels.weights import FfnWeights
from keepset.rules.masks import top_mask, top_units
from keepset.rules.rule import Rule
from keepset.sites.ffn import Site

TokenPath = Callable[["DynamicDown", Tensor], Tensor]


@contextmanager
def dynamic_downs(
    model: nn.Module, sites: Sequence[Site], rule: Rule, paths: Counter[str], selection: Selection
) -> Iterator[None]:
    """Hold a dynamic rule on `sites`; `paths` counts tokens x sites by path."""
    sparse, position = SparseDown(sites, paths, selection), Position(counting=False)
    label = f"dynamic {rule.score} kept={1 - rule.sparsity:.2g}"
    blocks = WholeBlocks(label, paths, selection, position)
    peers = TokenPaths(label, paths, selection)
    with ExitStack() as stack:
        stack.enter_context(position.following(model))
        for site in sites:
            score = UnitScore(site, rule)
            plain = DynamicDown(site, score, sparse, position, peers)
            if selection.may_use_triton("ffn", sparse.rows(site).device) and separable(site):
                block = WholeBlock(site, plain, _kernel(score), sparse.rows(site), blocks)
                stack.enter_context(block.standing_in())
            else:
                stack.enter_context(standing_forward(site.down, plain))
        yield


class DynamicDown:
    """Stands in for the forward of a site's down projection: chooses units, and projects these."""

    def __init__(
        self,
        site: Site,
        score: UnitScore,
        sparse: SparseDown,
        position: Position,
        peers: TokenPaths,
    ) -> None:
        """`position` will follow the passes of the model; `peers` are its other sites."""
        self.rows = sparse.rows(site)
        self._site, self._score, self._sparse, self._position = site, score, sparse, position
        # A ReLU's zeros add nothing; other activations have next to none, and looking costs time.
        self._is_relu = site.activation.startswith("relu")
        self._peers = peers
        self._by_numba: Forward | None = None
        peers.members.append(self)

    def __call__(self, h: Tensor) -> Tensor:
        """h (..., n_units) -> (..., d_model)."""
        if h.numel() == self._site.n_units and not self._position.opens:
            return self._peers.path(self, h)(self, h)
        flat = h.reshape(-1, self._site.n_units)
        kept = top_mask(self._score(flat), self._score.k, zeros_matter=False)
        if self._position.opens:
            kept.view(self._position.batch, self._position.tokens, -1)[:, 0] = True
        if self._is_relu:
            kept = torch.logical_and(kept, flat)
        return self._sparse(self._site, flat, kept).view(*h.shape[:-1], -1)

    def by_torch(self, h: Tensor) -> Tensor:
        """One token, by `top_units` and the fastest path on the units that it gives."""
        flat = h.reshape(1, -1)
        # A token's weights have just driven everything else out of the cache, code included: what
        # counts is how few operations there are, more than what each of them costs.
        kept = top_units(self._score(flat)[0], self._score.k, zeros=not self._is_relu)
        return self._sparse(self._site, flat, kept).view(*h.shape[:-1], -1)

    def by_numba(self, h: Tensor) -> Tensor:
        """One token, by one kernel that chooses and projects."""
        if self._by_numba is None:
            from keepset.kernels.numba_ffn import TokenDown  # compiled at its first use

            down: Any = self._site.down
            self._by_numba = TokenDown(self.rows, self._score.k, self._score.norms, down.bias)
        self._peers.paths[NUMBA] += 1
        return self._by_numba(h)


class TokenPaths:
    """Which path each shape of a model's down projections takes at one token.

    Attributes:
        paths: Counts tokens x sites by path.
        members: The down projections of all sites.
    """

    def __init__(self, label: str, paths: Counter[str], selection: Selection) -> None:
        """Start without members; `label` says what they do, for the record of times."""
        self.paths = paths
        self.members: list[DynamicDown] = []
        self._label, self._selection = label, selection
        self._path_of: dict[torch.Size, TokenPath] = {}

    def path(self, down: DynamicDown, h: Tensor) -> TokenPath:
        """The fastest path for one token h of `down`; timed once per shape."""
        path = self._path_of.get(down.rows.shape)
        if path is None:
            with uncounted(self.paths):
                path = self._path_of[down.rows.shape] = self._fastest(down, h)
        return path

    def _fastest(self, down: DynamicDown, h: Tensor) -> TokenPath:
        if rules_run_by(self._selection, h.device, h.dtype) != NUMBA:
            return DynamicDown.by_torch
        if (name := self._selection.forced_among((NUMBA, *DOWN_PATHS))) is not None:
            return DynamicDown.by_numba if name == NUMBA else DynamicDown.by_torch
        calls: dict[str, TokenPath] = {"torch": DynamicDown.by_torch, NUMBA: DynamicDown.by_numba}
        alike = [other for other in self.members if other.rows.shape == down.rows.shape]
        runs = {
            name: taking_turns(alike, lambda other, run=run: run(other, h))
            for name, run in calls.items()
        }
        shape = "x".join(map(str, down.rows.shape))
        return calls[self._selection.fastest((self._label, shape, *dispatch.setting(h)), runs)]


def _kernel(score: UnitScore) -> Kernel:
    """The same choice by `triton_ffn.sparse_decode`, for a whole block."""

    def kernel(x: Tensor, ffn: FfnWeights) -> Tensor:
        from keepset.kernels.triton_ffn import sparse_decode

        return sparse_decode(x, ffn, k=score.k, norms=score.norms)

    return kernel

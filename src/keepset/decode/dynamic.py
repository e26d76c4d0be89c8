"""Dynamic rules: gate and up are dense, the down projection reads the kept rows only.

On a CPU one kernel can choose a token's units and project them, and another reads gate and up as
they lie in memory (`keepset.decode.token`). On a GPU one kernel path can stand in for the whole
block: h stays on the device, its exact k best are found there, and nothing waits (`WholeBlock`).

The size of h_j is known only once gate and up of unit j are computed, so an exact choice at every
token can skip nothing of them. What it skips is 1 - (share kept) of the down projection: a third of
a gated block, half of another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from keepset.decode.block import separable
from keepset.decode.down import SparseDown
from keepset.decode.position import Position
from keepset.decode.score import UnitScore
from keepset.decode.token import TokenMap, TokenPaths, TokenProjection
from keepset.decode.whole import Kernel, WholeBlock, WholeBlocks
from keepset.hold.inputs import rules_run_by
from keepset.hold.slices import Forward, standing_forward
from keepset.kernels.selection import NUMBA, Selection
from keepset.kernels.weights import MAX_ROWS, FfnWeights
from keepset.rules.masks import top_mask, top_units
from keepset.rules.rule import Rule
from keepset.sites.ffn import Site


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
        ups = TokenPaths("up", paths, selection)
        for module in dict.fromkeys(part.module for site in sites for part in site.up):
            # Others may do more than a linear map, or keep their weights in another order.
            if type(module) is nn.Linear and _is_for_numba(module.weight, selection):
                dense = TokenProjection(module, position, ups)
                stack.enter_context(standing_forward(module, dense))
        yield


def _is_for_numba(weight: Tensor, selection: Selection) -> bool:
    return rules_run_by(selection, weight.device, weight.dtype) == NUMBA and weight.is_contiguous()


class DynamicDown(TokenMap):
    """Stands in for the forward of a site's down projection: chooses units, and projects these."""

    def __init__(
        self,
        site: Site,
        score: UnitScore,
        sparse: SparseDown,
        position: Position,
        peers: TokenPaths,
    ) -> None:
        """`position` will follow the passes of the model; `peers`: its down projections."""
        super().__init__(sparse.rows(site), peers)
        self._site, self._score, self._sparse, self._position = site, score, sparse, position
        # A ReLU's zeros add nothing; other activations have next to none, and looking costs time.
        self._is_relu = site.activation.startswith("relu")
        self._by_numba: Forward | None = None
        self._dense: Forward = site.down.forward

    def __call__(self, h: Tensor) -> Tensor:
        """h (..., n_units) -> (..., d_model)."""
        if h.numel() == self._site.n_units and not self._position.opens:
            return self.peers.run(self, h)
        flat = h.reshape(-1, self._site.n_units)
        if len(flat) > MAX_ROWS and self.peers.take_numba(h):
            return self._masked(h)
        kept = top_mask(self._score(flat), self._score.k, zeros_matter=False)
        if self._position.opens:
            kept.view(self._position.batch, self._position.tokens, -1)[:, 0] = True
        if self._is_relu:
            kept = torch.logical_and(kept, flat)
        return self._sparse(self._site, flat, kept).view(*h.shape[:-1], -1)

    def _masked(self, h: Tensor) -> Tensor:
        """A prompt, as passages run: together, many tokens leave out hardly a row of weights."""
        from keepset.kernels.numba_ffn import keep_by_token  # compiled at its first use

        position, score = self._position, self._score
        tokens = h.view(position.batch, position.tokens, self._site.n_units)
        held = keep_by_token(tokens, score.k, score.norms, (0, int(position.opens)))
        self.peers.paths[NUMBA] += position.batch * position.tokens
        return self._dense(held.view(h.shape))

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
        self.peers.paths[NUMBA] += 1
        return self._by_numba(h)


def _kernel(score: UnitScore) -> Kernel:
    """The same choice by `triton_ffn.sparse_decode`, for a whole block."""

    def kernel(x: Tensor, ffn: FfnWeights) -> Tensor:
        from keepset.kernels.triton_ffn import sparse_decode

        return sparse_decode(x, ffn, k=score.k, norms=score.norms)

    return kernel

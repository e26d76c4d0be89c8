"""Dynamic rules: gate and up are dense, the down projection reads the kept rows only.

On a GPU one kernel path can stand in for the whole block: h stays on the device, its exact k best
are found there, and nothing waits (`WholeBlock`).

The size of h_j is known only once gate and up of unit j are computed, so an exact choice at every
token can skip nothing of them. What it skips is 1 - (share kept) of the down projection: a third of
a gated block, half of another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from keepset.decode.block import Forward, separable, standing_forward
from keepset.decode.down import SparseDown
from keepset.decode.position import Position
from keepset.decode.score import UnitScore
from keepset.decode.whole import Kernel, WholeBlock, WholeBlocks
from keepset.kernels.selection import Selection
from keepset.kernels.weights import FfnWeights
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
    with ExitStack() as stack:
        stack.enter_context(position.following(model))
        for site in sites:
            score = UnitScore(site, rule)
            plain = _forward(site, score, sparse, position)
            if selection.may_use_triton("ffn", sparse.rows(site).device) and separable(site):
                block = WholeBlock(site, plain, _kernel(score), sparse.rows(site), blocks)
                stack.enter_context(block.standing_in())
            else:
                stack.enter_context(standing_forward(site.down, plain))
        yield


def _forward(site: Site, score: UnitScore, sparse: SparseDown, position: Position) -> Forward:
    """What stands in for the forward of a site's down projection."""
    # A ReLU's zeros add nothing; other activations have next to none, and looking costs time.
    relu = site.activation.startswith("relu")

    def forward(h: Tensor) -> Tensor:
        flat = h.reshape(-1, site.n_units)
        scores = score(flat)
        if len(flat) == 1 and not position.opens:
            # A token's weights have just driven everything else out of the cache, code included:
            # what counts is how few operations there are, more than what each of them costs.
            kept = top_units(scores[0], score.k, zeros=not relu)
        else:
            kept = top_mask(scores, score.k, zeros_matter=False)
            if position.opens:
                kept.view(position.batch, position.tokens, -1)[:, 0] = True
            if relu:
                kept = torch.logical_and(kept, flat)
        return sparse(site, flat, kept).view(*h.shape[:-1], -1)

    return forward


def _kernel(score: UnitScore) -> Kernel:
    """The same choice by `triton_ffn.sparse_decode`, for a whole block."""

    def kernel(x: Tensor, ffn: FfnWeights) -> Tensor:
        from keepset.kernels.triton_ffn import sparse_decode

        return sparse_decode(x, ffn, k=score.k, norms=score.norms)

    return kernel

"""Dynamic rules: gate and up are dense, the down projection reads the kept rows only.

On a GPU one kernel path can stand in for the whole block: h stays on the device, its exact k best
are found there, and nothing waits (`whole_block`).

The size of h_j is known only once gate and up of unit j are computed, so an exact choice at every
token can skip nothing of them. What it skips is 1 - (share kept) of the down projection: a third of
a gated block, half of another.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import torch
from torch import Tensor

from keepset.decode.whole import Alike, Forward, WholeBlock
from keepset.hold.inputs import output_norms
from keepset.kernels import dispatch
from keepset.kernels.torch_ffn import DownPath
from keepset.kernels.weights import FfnWeights
from keepset.rules.masks import top_mask, top_units
from keepset.rules.rule import Rule, n_kept
from keepset.rules.scores import token_score
from keepset.sites import Site


class SparseDown:
    """The down projections of a model's sites with neuron-major weights and the fastest path."""

    def __init__(self, rows: dict[str, Tensor], paths: Counter[str]) -> None:
        """`rows`: site key -> (n_units, d_model); `paths` counts tokens x sites by path taken."""
        self._rows = rows
        self._paths = paths
        self._names: dict[tuple[Any, ...], str] = {}
        self._known: dict[tuple[Any, ...], tuple[str, DownPath, Tensor, Tensor | None]] = {}

    def rows(self, site: Site) -> Tensor:
        """The neuron-major weights of a site: (n_units, d_model)."""
        return self._rows[site.key]

    def __call__(self, site: Site, h: Tensor, kept: Tensor) -> Tensor:
        """(n, n_units) activations and kept units, as in `torch_ffn` -> (n, d_model)."""
        n = len(h)
        # Found once per site: at batch 1 a look-up costs as much as reading a few kept rows.
        key = (site, n if n < 3 else 1 << (n - 1).bit_length(), kept.dtype)
        known = self._known.get(key)
        if known is None:
            known = self._known[key] = self._find(site, h, kept, key[1:])
        name, path, rows, bias = known
        self._paths[name] += n
        return path(h, kept, rows, bias)

    def _find(
        self, site: Site, h: Tensor, kept: Tensor, sizes: tuple[Any, ...]
    ) -> tuple[str, DownPath, Tensor, Tensor | None]:
        rows, bias = self._rows[site.key], cast(Any, site.down).bias
        key = (rows.shape, *sizes)
        name = self._names.get(key)
        if name is None:
            alike = [other for other in self._rows.values() if other.shape == rows.shape]
            name = self._names[key] = dispatch.down_path(h, kept, alike, bias)
        return (
            name,
            dispatch.down_paths(h.device, len(h), kept.dtype == torch.bool)[name],
            rows,
            bias,
        )


def dynamic_forward(site: Site, rule: Rule, sparse: SparseDown) -> Forward:
    """What stands in for the forward of a site's down projection under a dynamic rule."""
    n_units, k = site.n_units, n_kept(site.n_units, rule.sparsity)
    norms = output_norms(site) if rule.score == "impact" else None
    # A ReLU's zeros add nothing; other activations have next to none, and looking costs time.
    relu = site.activation.startswith("relu")

    def forward(h: Tensor) -> Tensor:
        flat = h.reshape(-1, n_units)
        score = token_score(rule.score, flat, norms, None)
        if len(flat) == 1:
            # A token's weights have just driven everything else out of the cache, code included:
            # what counts is how few operations there are, more than what each of them costs.
            kept = top_units(score[0], k, zeros=not relu)
        else:
            kept = top_mask(score, k, zeros_matter=False)
            if relu:
                kept = torch.logical_and(kept, flat)
        return sparse(site, flat, kept).view(*h.shape[:-1], -1)

    return forward


def whole_block(
    site: Site, rule: Rule, sparse: SparseDown, plain: Forward, alike: Alike
) -> WholeBlock:
    """A site whose whole block `triton_ffn.sparse_decode` computes, where `plain` is slower."""
    k = n_kept(site.n_units, rule.sparsity)
    norms = output_norms(site) if rule.score == "impact" else None

    def kernel(x: Tensor, ffn: FfnWeights) -> Tensor:
        from keepset.kernels.triton_ffn import sparse_decode

        return sparse_decode(x, ffn, k=k, norms=norms)

    return WholeBlock(site, plain, kernel, sparse.rows(site), alike)

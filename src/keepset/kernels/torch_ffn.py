"""The down projection on kept units only, in plain torch: the CPU's paths, and the GPU's fallback.

All take the same arguments and give the same output up to rounding. `rows` is *neuron-major*: row
j is unit j's output column, so that a kept unit is one contiguous read. Which of them is fastest
depends on the shape, the share kept, the number of rows and the machine: `keepset.kernels.dispatch`
times them and takes the fastest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

_SUM = 0  # the mode of embedding_bag

DownPath = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""(h, kept, rows, bias) -> output, as in `masked`."""


def masked(h: Tensor, kept: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
    """Set the units that are left out to zero, then multiply densely: the reference for the others.

    Args:
        h: (n, n_units) activations.
        kept: Which units each row keeps: (n, n_units) bool, or (k,) int64, the units that all
            rows keep.
        rows: (n_units, d_model) neuron-major weights.
        bias: (d_model,) or None.

    Returns:
        (n, d_model): the sum over kept units j of h_j * rows[j], plus the bias.
    """
    if kept.dtype == torch.bool:
        return F.linear(h * kept, rows.T, bias)
    left = torch.zeros_like(h)
    left[:, kept] = h[:, kept]
    return F.linear(left, rows.T, bias)


def bag(h: Tensor, kept: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
    """One weighted `embedding_bag` per row of `h`: reads each kept row once, writes no copy.

    Arguments and result as in `masked`; rows of a mask may keep different counts, or none.
    """
    if kept.dtype == torch.bool:
        units, values, counts = kept.nonzero()[:, 1], h[kept], kept.sum(dim=1)
        offsets = counts.cumsum(0) - counts
    elif len(h) == 1:
        units, values, offsets = kept, h[0].index_select(0, kept), _zero(h.device)
    else:
        units, values = kept.repeat(len(h)), h.index_select(1, kept).flatten()
        offsets = torch.arange(len(h), device=h.device) * len(kept)
    # The operator itself: the checks of torch.nn.functional cost half as much as a small sum.
    out = torch.embedding_bag(rows, units, offsets, False, _SUM, False, values)[0]
    return out if bias is None else out + bias


@cache
def _zero(device: torch.device) -> Tensor:
    return torch.zeros(1, dtype=torch.int64, device=device)


def select(h: Tensor, kept: Tensor, rows: Tensor, bias: Tensor | None) -> Tensor:
    """Copy the rows that any row of `h` keeps, then multiply: for sets that are shared.

    Arguments and result as in `masked`.
    """
    if kept.dtype == torch.bool:
        h, kept = h * kept, kept.any(dim=0).nonzero()[:, 0]
    return F.linear(h.index_select(1, kept), rows.index_select(0, kept).T, bias)


DOWN_PATHS: dict[str, DownPath] = {"masked": masked, "bag": bag, "select": select}
"""Every path of a sparse down projection in torch; `masked` does no less work than dense."""


def neuron_major(weight: Tensor) -> Tensor:
    """(n_units, d_model) in memory order, from any view of that shape; a copy only if needed."""
    return weight.detach().contiguous()

"""Sums over calibration text that are kept apart by groups of documents.

Text is what a calibration sum is a sample of, and a document is its unit: the sums of any part of
the documents are at hand later, so that one group at a time can be left out (docs/METHODS.md,
section 3).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from keepset.settings.measuring import MOST_GROUPS


def deal(documents: Tensor) -> Tensor:
    """The group of each block: documents are dealt round robin, in order of appearance.

    Args:
        documents: (n_blocks,) int64, the document of each block.

    Returns:
        (n_blocks,) int64, below `MOST_GROUPS`. A document is whole in one group.
    """
    place: dict[int, int] = {}
    for document in documents.tolist():
        place.setdefault(document, len(place))
    return torch.tensor([place[document] % MOST_GROUPS for document in documents.tolist()])


def count(groups: Tensor) -> int:
    """How many groups there are: (n_blocks,) what `deal` returned."""
    return int(groups.max()) + 1


def others(n_groups: int, left_out: int) -> list[int]:
    """All groups but one; all of them for -1."""
    return [group for group in range(n_groups) if group != left_out]


def left_outs(n_groups: int) -> range:
    """What can be left out: -1 is nothing, then each group. One group alone cannot be."""
    return range(-1, n_groups if n_groups > 1 else 0)


def holding(groups: Tensor, n_blocks: int) -> list[int]:
    """The smallest groups that hold `n_blocks` blocks together; all where there are no more.

    `groups` (n_blocks,) is what `deal` returned.
    """
    sizes = torch.bincount(groups)
    order = sizes.argsort(stable=True)
    before = sizes[order].cumsum(0) - sizes[order]
    return sorted(order[before < n_blocks].tolist())


class GroupSums:
    """Float64 sums of one quantity, a row for each group of documents."""

    def __init__(self, n_groups: int) -> None:
        self._n_groups = n_groups
        self._rows: Tensor | None = None

    def add(self, values: Tensor, groups: Tensor) -> None:
        """Add values (rows, ...) float64 to the groups (rows,) of their rows."""
        values = values.detach().cpu()
        if self._rows is None:
            self._rows = values.new_zeros(self._n_groups, *values.shape[1:])
        self._rows.index_add_(0, groups, values)

    @property
    def rows(self) -> Tensor:
        """(n_groups, ...) float64."""
        assert self._rows is not None, "no text was summed"
        return self._rows

    def total(self, groups: Sequence[int] | None = None) -> Tensor:
        """The sum over some groups, all if left out: (...) float64."""
        return (self.rows if groups is None else self.rows[list(groups)]).sum(dim=0)

"""What a model reads before a text: the BOS token, where it has one."""

from __future__ import annotations

import torch
from torch import Tensor


def with_bos(ids: Tensor, bos: int | None) -> Tensor:
    """Rows of text as the model reads them.

    Args:
        ids: (n, tokens) int64, without special tokens.
        bos: The token that stands before every text; None where the model has none.

    Returns:
        (n, 1 + tokens) int64, or `ids` itself.

    Example:
        >>> import torch
        >>> with_bos(torch.tensor([[5, 6], [7, 8]]), 2).tolist()
        [[2, 5, 6], [2, 7, 8]]
    """
    if bos is None:
        return ids
    return torch.cat([ids.new_full((len(ids), 1), bos), ids], dim=1)

"""The loss of each token of some passages, from logits."""

from __future__ import annotations

import torch
from torch import Tensor

from keepset.hold.inputs import rules_run_by
from keepset.kernels.selection import NUMBA, Selection

# Rows of logits turned into float32 at a time: small enough to stay in the last-level cache.
_LOGIT_ROWS = 128


def token_nll(logits: Tensor, ids: Tensor, selection: Selection | None = None) -> Tensor:
    """Negative log-likelihood of every token but the first, in nats.

    Args:
        logits: (batch, tokens, words).
        ids: (batch, tokens) int64.
        selection: Which kernels may run; plain torch if left out.

    Returns:
        (batch, tokens - 1) float64.
    """
    rows, targets = logits[:, :-1], ids[:, 1:]
    row_nll = _by_torch
    if rules_run_by(selection, logits.device, logits.dtype) == NUMBA:
        from keepset.kernels.numba_loss import token_nll as row_nll  # compiled at its first use
    return torch.stack([row_nll(*row) for row in zip(rows, targets, strict=True)])


def _by_torch(logits: Tensor, targets: Tensor) -> Tensor:
    """The plain reference: logits (tokens, words) and targets (tokens,) -> (tokens,) float64."""
    parts = []
    for chunk, target in zip(logits.split(_LOGIT_ROWS), targets.split(_LOGIT_ROWS), strict=True):
        scores = chunk.float()
        picked = scores.gather(1, target[:, None])[:, 0]
        parts.append(torch.logsumexp(scores, dim=1).double() - picked.double())
    return torch.cat(parts)

"""The loss of a step, without ever holding all logits.

Logits of 2,048 tokens and 4,096 entries are 34 MB in float32, and a plain cross-entropy reads and
writes them a dozen times. Here rows are taken a few at a time, while they are in the cache, and
their gradient with them, in the manner of Liger-Kernel's fused linear cross-entropy (Hsu et al.
2024, arXiv:2410.10989).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_ROWS = 256


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913, PLR0917
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        low, table = hidden.to(dtype), head.to(dtype)
        to_hidden = torch.empty_like(hidden, dtype=torch.float32)
        to_head = torch.zeros_like(head, dtype=torch.float32)
        nll = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        right = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        for start in range(0, len(hidden), _ROWS):
            at = slice(start, start + _ROWS)
            target = targets[at, None]
            logits = (low[at] @ table.T).float()
            own = logits.gather(1, target)
            total = logits.logsumexp(dim=1, keepdim=True)
            nll[at] = (total - own)[:, 0]
            right[at] = (logits <= own).all(dim=1)
            gradient = logits.sub_(total).exp_()
            gradient.scatter_add_(1, target, gradient.new_full(target.shape, -1.0))
            part = gradient.mul_(weights[at, None]).to(dtype)
            to_hidden[at] = part @ table
            to_head += part.T @ low[at]
        ctx.save_for_backward(to_hidden.to(hidden.dtype), to_head.to(head.dtype))
        ctx.mark_non_differentiable(nll, right)
        return (nll * weights).sum(), nll, right

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        to_hidden, to_head = ctx.saved_tensors
        return to_hidden * grad, to_head * grad, None, None, None


def linear_cross_entropy(
    hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Weighted sum of the cross-entropy of `hidden @ head.T`.

    Args:
        hidden: (rows, width) the last hidden states.
        head: (vocabulary, width) the output embedding.
        targets: (rows,) int64.
        weights: (rows,) float32.
        dtype: What the matrix products are computed in.

    Returns:
        The sum of weights x nll, which has a gradient; per row the nll in nats and whether the
        target is (one of) the most likely, which have none.
    """
    return _LinearCrossEntropy.apply(hidden, head, targets, weights, dtype)  # type: ignore[no-any-return, no-untyped-call]

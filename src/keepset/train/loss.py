"""The loss of a step, without storing all logits.

Logits of 2,048 tokens and 4,096 entries are 34 MB in float32, and a plain cross-entropy reads and
writes them a dozen times. Here loss and gradient are computed for a few rows at a time, while these
are in the cache, as in Liger-Kernel's fused linear cross-entropy (Hsu et al. 2024,
arXiv:2410.10989).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from keepset.train.rows import Batch

BALANCE = "router_aux_loss_coef"
"""The key of a configuration that holds the weight of `balance_loss`."""
_ROWS = 256


@dataclass
class Loss:
    """The loss of one step and its parts."""

    total: Tensor
    """What is minimised."""
    text: float
    """Mean over the predicted tokens of text rows, in nats."""
    answers: float
    """Mean over the answers of recall rows, in nats; NaN where there are none."""
    correct: float
    """Share of the answer tokens that are the most likely ones."""


def weighted_loss(
    hidden: Tensor, head: Tensor, batch: Batch, answer_weight: float, dtype: torch.dtype
) -> Loss:
    """Weighted mean of the negative log-likelihood: answers by `answer_weight`, other tokens by 1.

    Args:
        hidden: (rows, tokens, width), the last hidden states.
        head: (vocabulary, width), the output embedding.
        batch: The rows, on the same device.
        answer_weight: Weight of an answer's token.
        dtype: What the logits are computed in.
    """
    answers = batch.answers[:, 1:]
    weights = 1.0 + (answer_weight - 1.0) * answers
    total, nll, correct = linear_cross_entropy(
        hidden[:, :-1].flatten(0, 1),
        head,
        batch.ids[:, 1:].flatten(),
        (weights / weights.sum()).flatten(),
        dtype,
    )
    nll, correct = nll.view(answers.shape), correct.view(answers.shape)
    text, answer = nll[~batch.recall].mean(), nll[answers].mean()
    return Loss(total, float(text), float(answer), float(correct[answers].float().mean()))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        low, table = hidden.to(dtype), head.to(dtype)
        # `to_x`: the gradient with respect to x.
        to_hidden = torch.empty_like(hidden, dtype=torch.float32)
        to_head = torch.zeros_like(head, dtype=torch.float32)
        nll = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
        correct = torch.empty(len(hidden), dtype=torch.bool, device=hidden.device)
        for start in range(0, len(hidden), _ROWS):
            rows = slice(start, start + _ROWS)
            target = targets[rows, None]
            logits = (low[rows] @ table.T).float()
            target_logit = logits.gather(1, target)
            log_sum = logits.logsumexp(dim=1, keepdim=True)
            nll[rows] = (log_sum - target_logit)[:, 0]
            correct[rows] = (logits <= target_logit).all(dim=1)
            to_logits = logits.sub_(log_sum).exp_()
            to_logits.scatter_add_(1, target, to_logits.new_full(target.shape, -1.0))
            weighted = to_logits.mul_(weights[rows, None]).to(dtype)
            to_hidden[rows] = weighted @ table
            to_head += weighted.T @ low[rows]
        ctx.save_for_backward(to_hidden.to(hidden.dtype), to_head.to(head.dtype))
        ctx.mark_non_differentiable(nll, correct)
        return (nll * weights).sum(), nll, correct

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
        The sum of weights x nll, with a gradient; without one, per row: the nll in nats, and
        whether no token is more likely than the target.
    """
    return _LinearCrossEntropy.apply(hidden, head, targets, weights, dtype)


def balance_loss(logits: Sequence[Tensor], config: PreTrainedConfig) -> Tensor:
    """The load-balancing loss of a mixture of experts, weighted (Switch Transformer, equations 4-6,

    arXiv:2101.03961): E times the sum over experts of (share of tokens x mean router weight), mean
    over layers. Each layer is balanced on its own: in the sum over layers, which transformers
    takes, one layer could make up for another.

    Args:
        logits: Per layer (tokens, experts), the routers' outputs.
        config: Of the model; names the experts, how many a token is routed to, and the weight.
    """
    sizes = (config.num_experts, config.num_experts_per_tok)
    balance = [load_balancing_loss_func((layer,), *sizes) for layer in logits]
    return float(getattr(config, BALANCE)) * torch.stack(balance).mean()

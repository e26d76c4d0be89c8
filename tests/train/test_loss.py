"""The fused loss against a plain one."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from keepset.train.loss import linear_cross_entropy


@pytest.mark.parametrize("rows", [1, 255, 256, 600])
def test_value_and_gradients_are_those_of_a_plain_loss(rows: int) -> None:
    torch.manual_seed(rows)
    hidden = torch.randn(rows, 12, requires_grad=True)
    head = torch.randn(30, 12, requires_grad=True)
    targets, weights = torch.randint(30, (rows,)), torch.rand(rows)
    logits = hidden @ head.T
    expected = cross_entropy(logits, targets, reduction="none")
    wanted = torch.autograd.grad(3 * (expected * weights).sum(), [hidden, head])
    total, nll, right = linear_cross_entropy(hidden, head, targets, weights, torch.float32)
    torch.testing.assert_close(nll, expected.detach())
    assert torch.equal(right, logits.argmax(dim=1) == targets)
    for found, value in zip(torch.autograd.grad(3 * total, [hidden, head]), wanted, strict=True):
        torch.testing.assert_close(found, value)

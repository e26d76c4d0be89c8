"""The fused loss against a plain one."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import Qwen3MoeConfig

from keepset.train.loss import balance_loss, linear_cross_entropy, weighted_loss
from keepset.train.rows import Batch


@pytest.mark.parametrize("rows", [1, 255, 256, 600])
def test_value_and_gradients_are_those_of_a_plain_loss(rows: int) -> None:
    torch.manual_seed(rows)
    hidden = torch.randn(rows, 12, requires_grad=True)
    head = torch.randn(30, 12, requires_grad=True)
    targets, weights = torch.randint(30, (rows,)), torch.rand(rows)
    logits = hidden @ head.T
    expected = cross_entropy(logits, targets, reduction="none")
    wanted = torch.autograd.grad(3 * (expected * weights).sum(), [hidden, head])
    total, nll, correct = linear_cross_entropy(hidden, head, targets, weights, torch.float32)
    torch.testing.assert_close(nll, expected.detach())
    assert torch.equal(correct, logits.argmax(dim=1) == targets)
    gradients = torch.autograd.grad(3 * total, [hidden, head])
    for gradient, value in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(gradient, value)


def test_answers_weigh_more() -> None:
    ids = torch.tensor([[0, 1, 2], [0, 1, 2]])
    answers = torch.tensor([[False, False, False], [False, False, True]])
    batch = Batch(ids, answers, torch.tensor([False, True]))
    logits = torch.zeros(2, 3, 4)
    logits[1, 1, 2] = 5.0
    flat = torch.tensor(4.0).log()
    answer = -torch.log_softmax(logits[1, 1], dim=0)[2]
    loss = weighted_loss(logits, torch.eye(4), batch, 3.0, torch.float32)
    assert loss.total == pytest.approx(float(3 * flat + 3 * answer) / 6)
    assert (loss.text, loss.answers) == pytest.approx((float(flat), float(answer)), rel=1e-4)
    assert loss.correct == 1.0


def test_every_layer_is_balanced_on_its_own() -> None:
    """Equation 4 of Switch Transformer in each layer, where two layers are each other's mirror."""
    logits = torch.tensor([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    config = Qwen3MoeConfig(num_experts=2, num_experts_per_tok=1, router_aux_loss_coef=0.5)
    sent, weight = torch.tensor([2 / 3, 1 / 3]), logits.softmax(dim=1).mean(dim=0)
    expected = 2 * float(sent @ weight)
    assert expected > 1.0
    loss = balance_loss((logits, logits.flip(1)), config)
    assert float(loss) == pytest.approx(0.5 * expected)

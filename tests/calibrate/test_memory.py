"""Peak memory, counted."""

import torch

from keepset.calibrate.memory import peak_bytes

CPU = torch.device("cpu")
MB = 250_000  # float32 numbers of a million bytes


def test_what_lives_together_is_counted_together() -> None:
    def one_after_the_other() -> None:
        for _ in range(5):
            torch.zeros(MB).add_(1)

    def all_at_once() -> list[torch.Tensor]:
        return [torch.zeros(MB) for _ in range(5)]

    assert peak_bytes(one_after_the_other, CPU) == 1_000_000
    assert peak_bytes(all_at_once, CPU) == 5_000_000


def test_views_and_what_was_there_before_do_not_count() -> None:
    before = torch.zeros(MB)
    assert peak_bytes(lambda: before.view(2, -1).transpose(0, 1).add_(1), CPU) == 0


def test_a_graph_keeps_its_activations() -> None:
    weight = torch.ones(MB, requires_grad=True)

    def depth(n: int) -> int:
        def work() -> None:
            x = weight
            for _ in range(n):
                x = x.sin()
            x.sum().backward()
            weight.grad = None

        return peak_bytes(work, CPU)

    with torch.no_grad():
        assert peak_bytes(lambda: weight.sin().sin().sin().sin(), CPU) == 2_000_000
    assert 6_000_000 <= depth(6) <= 9_000_000

"""Peak memory, counted."""

import torch

from keepset.calibrate.channels import Scorer
from keepset.calibrate.memory import memory_table, peak_bytes
from keepset.sites.state import find_state_sites
from state_models import shape

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


def test_scoring_takes_little_more_memory_than_a_forward_pass(tiny_model):
    # Long enough that a state for every token would dwarf everything else.
    model = tiny_model("mamba2", **shape("mamba2", n_state=64))
    blocks = torch.randint(4, 260, (2, 160))
    scorer = Scorer(model, find_state_sites(model), blocks, 1000)
    table = memory_table(scorer, blocks, {}).pivot(
        index="n_tokens", columns="method", values="peak_bytes"
    )
    one_state_per_token = 160 * 4 * 64 * 64
    assert table.loc[160, "ghost"] < one_state_per_token
    assert (table["ghost"] <= 2 * table["forward"]).all()
    assert (table["taylor"] > table["ghost"]).all()
